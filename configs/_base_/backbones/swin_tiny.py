# SPDX-License-Identifier: Apache-2.0
"""Swin-T of mmpretrain, the baseline of the detectors; its blocks can omit the shift."""

swin = dict(
    type='mmpretrain.SwinTransformer',
    arch='tiny',
    drop_path_rate=0.2,  # as Focal-T
    pad_small_map=True,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://mmassets.onedl.ai/mmclassification/v0/swin-transformer/swin_tiny_224_b16x64_300e_imagenet_20210616_090925-66df6be6.pth',
        prefix='backbone.',
    ),
)
