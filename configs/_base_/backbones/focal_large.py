# SPDX-License-Identifier: Apache-2.0
"""Differences of Focal-L from Focal-T, for ``model.backbone`` of a Focal-T config.

Its ImageNet-22K weights were never released: ``classification/focal_l_in22k.py`` trains them.
"""

focal_l = dict(
    # choice: width 192, inferred from the paper's parameter counts; its text says 196:
    # arch=dict(embed_dims=196, depths=(2, 2, 18, 2), num_heads=(7, 14, 28, 56))
    # and focal_l_channels = [196, 392, 784, 1568]
    # choice: heads of 32 channels, as in the other sizes; heads of 48 channels:
    # arch=dict(embed_dims=192, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
    arch='large',
    drop_path_rate=0.2,
    init_cfg=dict(
        type='FocalPretrained',
        checkpoint='{{$FOCAL_L_CKPT:checkpoints/focal-large-in22k-is224-ws7.pth}}',
    ),
)
focal_l_channels = [192, 384, 768, 1536]
