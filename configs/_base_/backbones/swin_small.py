# SPDX-License-Identifier: Apache-2.0
"""Differences of Swin-S from Swin-T."""

swin_s = dict(
    arch='small',
    drop_path_rate=0.3,
    init_cfg=dict(
        checkpoint='https://mmassets.onedl.ai/mmclassification/v0/swin-transformer/swin_small_224_b16x64_300e_imagenet_20210615_110219-7f9d988b.pth',
    ),
)
