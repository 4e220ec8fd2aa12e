# SPDX-License-Identifier: Apache-2.0
_base_ = ['focal_t_htcpp_3x.py', '../_base_/backbones/focal_large.py']

# choice: box heads Shared2FC, mmdet's default, inferred from the paper's 1165G; Swin-L's HTC++ has
# the box heads of focal_l_htcpp_4conv1fc_3x.py
model = dict(backbone=_base_.focal_l, neck=dict(in_channels=_base_.focal_l_channels))
