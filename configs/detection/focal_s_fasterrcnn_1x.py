# SPDX-License-Identifier: Apache-2.0
_base_ = ['focal_t_fasterrcnn_1x.py', '../_base_/backbones/focal_small.py']

model = dict(backbone=dict(drop_path_rate=0.3, **_base_.size))
