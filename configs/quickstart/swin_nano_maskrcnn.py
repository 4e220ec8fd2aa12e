# SPDX-License-Identifier: Apache-2.0
"""The baseline: Swin of the same width, depth and schedule as ``focal_nano_maskrcnn.py``."""

_base_ = ['../_base_/nano/maskrcnn.py', '../_base_/backbones/focal_nano.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        window_size=7,
        drop_path_rate=_base_.backbone.drop_path_rate,
        **_base_.backbone.arch,
    )
)
