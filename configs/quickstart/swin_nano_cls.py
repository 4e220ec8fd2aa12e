# SPDX-License-Identifier: Apache-2.0
"""The baseline: Swin of the same width, depth and schedule as ``focal_nano_cls.py``.

A Focal Transformer can start from its weights: ``type='SwinPretrained'``.
"""

_base_ = 'focal_nano_cls.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        arch=_base_.backbone.arch,
        img_size=56,
        window_size=7,
        pad_small_map=True,  # the last map has 2 rows
        drop_path_rate=_base_.backbone.drop_path_rate,
    )
)
