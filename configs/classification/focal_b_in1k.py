# SPDX-License-Identifier: Apache-2.0
_base_ = ['focal_t_in1k.py', '../_base_/backbones/focal_base.py']

# choice: drop path as in the released settings; the paper says drop_path_rate=0.3
# 8 GPUs x 64 x 2 steps in the released code: optim_wrapper.accumulative_counts=2
model = dict(
    backbone=dict(arch=_base_.focal_b.arch, drop_path_rate=_base_.focal_b.drop_path_rate),
    head=dict(in_channels=_base_.focal_b_channels[-1]),
)
