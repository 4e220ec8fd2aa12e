# SPDX-License-Identifier: Apache-2.0
"""Differences of Focal-B from Focal-T, for ``model.backbone`` of a Focal-T config."""

focal_b = dict(
    arch='base',
    drop_path_rate=0.5,
    init_cfg=dict(
        type='FocalPretrained',
        checkpoint='{{$FOCAL_B_CKPT:checkpoints/focal-base-is224-ws7.pth}}',
    ),
)
focal_b_channels = [128, 256, 512, 1024]
