# SPDX-License-Identifier: Apache-2.0
"""Tables 7 to 9: Swin-T with windows of 7, shift, and depths 2-2-6-2."""

_base_ = ['../focal_t_in1k.py', '../../_base_/backbones/swin_tiny.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        arch=_base_.swin.arch,
        drop_path_rate=_base_.swin.drop_path_rate,
    )
)
