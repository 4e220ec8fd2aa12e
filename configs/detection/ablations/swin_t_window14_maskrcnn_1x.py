# SPDX-License-Identifier: Apache-2.0
"""Table 7: Swin-T with windows of 14."""

_base_ = 'swin_t_maskrcnn_1x.py'

model = dict(
    backbone=dict(
        window_size=14,
        init_cfg=dict(checkpoint='work_dirs/swin_t_window14_in1k/epoch_300.pth'),
    )
)
