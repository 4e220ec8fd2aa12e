# SPDX-License-Identifier: Apache-2.0
_base_ = ['focal_t_in1k.py', '../_base_/backbones/focal_small.py']

# choice: drop path as in the released settings; the paper says drop_path_rate=0.2
model = dict(
    backbone=dict(arch=_base_.focal_s.arch, drop_path_rate=_base_.focal_s.drop_path_rate),
)
