# SPDX-License-Identifier: Apache-2.0
"""Figure 5: window and coarse keys only."""

_base_ = '../focal_t_maskrcnn_1x.py'

model = dict(
    backbone=dict(
        expand_sizes=(0, 0, 0, 0),
        init_cfg=dict(checkpoint='work_dirs/focal_t_global_in1k/epoch_300.pth'),
    )
)
