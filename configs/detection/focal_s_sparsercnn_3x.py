# SPDX-License-Identifier: Apache-2.0
_base_ = ['focal_t_sparsercnn_3x.py', '../_base_/backbones/focal_small.py']

model = dict(backbone=_base_.focal_s)
