# SPDX-License-Identifier: Apache-2.0
_base_ = ['focal_t_upernet_160k.py', '../_base_/backbones/focal_base.py']

model = dict(
    backbone=_base_.size,
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)
