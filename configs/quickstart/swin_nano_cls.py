# SPDX-License-Identifier: Apache-2.0
"""The baseline: Swin of the same width, depth and schedule as ``focal_nano_cls.py``.

A Focal Transformer can start from its weights: ``type='SwinPretrained'``.
"""

_base_ = 'focal_nano_cls.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        arch=dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)),
        img_size=56,
        window_size=7,
        pad_small_map=True,  # the last map has 2 rows
        drop_path_rate=0.0,
    )
)
