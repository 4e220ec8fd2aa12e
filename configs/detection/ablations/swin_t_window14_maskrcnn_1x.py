# SPDX-License-Identifier: Apache-2.0
"""Table 7: Swin-T with windows of 14."""

_base_ = 'swin_t_maskrcnn_1x.py'

model = dict(
    backbone=dict(
        # stage 4 stays at 7 as in the classifier, whose last map has 7 rows
        stage_cfgs=[dict(window_size=size) for size in (14, 14, 14, 7)],
        init_cfg=dict(checkpoint='work_dirs/swin_t_window14_in1k/epoch_300.pth'),
    )
)
