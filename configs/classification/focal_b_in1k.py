# SPDX-License-Identifier: Apache-2.0
_base_ = 'focal_t_in1k.py'

# choice: drop path as in the released settings; the paper says drop_path_rate=0.3
# 8 GPUs x 64 x 2 steps in the released code: optim_wrapper.accumulative_counts=2
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5),
    head=dict(in_channels=1024),
)
