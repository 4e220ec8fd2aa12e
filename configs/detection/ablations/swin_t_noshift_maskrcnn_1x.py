# SPDX-License-Identifier: Apache-2.0
"""Table 8: Swin-T without shift."""

_base_ = 'swin_t_maskrcnn_1x.py'

model = dict(
    backbone=dict(
        stage_cfgs=dict(block_cfgs=dict(shift=False)),
        init_cfg=dict(checkpoint='work_dirs/swin_t_noshift_in1k/epoch_300.pth'),
    )
)
