# SPDX-License-Identifier: Apache-2.0
"""Tables 7 to 9: Swin-T with windows of 7, shift, and depths 2-2-6-2."""

_base_ = ['../focal_t_maskrcnn_1x.py', '../../_base_/backbones/swin_tiny.py']

model = dict(
    backbone=dict(_delete_=True, drop_path_rate=0.2, out_indices=(0, 1, 2, 3), **_base_.swin)
)
