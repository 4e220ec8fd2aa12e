# SPDX-License-Identifier: Apache-2.0
"""The baseline: Swin of the same width, depth and schedule as ``focal_nano_maskrcnn.py``."""

_base_ = '../_base_/nano/maskrcnn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=32,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        window_size=7,
        drop_path_rate=0.0,
    )
)
