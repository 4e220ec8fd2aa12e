# SPDX-License-Identifier: Apache-2.0
"""Section 4.2: Swin-S with Focal's hyper-parameters."""

_base_ = ['swin_t_retinanet_1x.py', '../../_base_/backbones/swin_small.py']

model = dict(backbone=_base_.swin_s)
