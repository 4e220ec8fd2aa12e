# SPDX-License-Identifier: Apache-2.0
"""Section 4.2: Swin-T with Focal's hyper-parameters."""

_base_ = ['../focal_t_retinanet_1x.py', '../../_base_/backbones/swin_tiny.py']

model = dict(backbone=dict(_delete_=True, out_indices=(1, 2, 3), **_base_.swin))
