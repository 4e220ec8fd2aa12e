# SPDX-License-Identifier: Apache-2.0
"""Differences of Swin-B from Swin-T."""

swin_b = dict(
    arch='base',
    drop_path_rate=0.5,
    init_cfg=dict(
        checkpoint='https://mmassets.onedl.ai/mmclassification/v0/swin-transformer/swin_base_224_b16x64_300e_imagenet_20210616_190742-93230b0d.pth',
    ),
)
swin_b_channels = [128, 256, 512, 1024]
