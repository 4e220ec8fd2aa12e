# SPDX-License-Identifier: Apache-2.0
"""Figure 5: window and neighbor keys only."""

_base_ = '../focal_t_maskrcnn_1x.py'

model = dict(
    backbone=dict(
        focal_levels=(1, 1, 1, 1),
        init_cfg=dict(checkpoint='work_dirs/focal_t_local_in1k/epoch_300.pth'),
    )
)
