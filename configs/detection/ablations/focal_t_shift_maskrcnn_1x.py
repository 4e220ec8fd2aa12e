# SPDX-License-Identifier: Apache-2.0
"""Table 8: windows of every other block shifted by 3."""

_base_ = '../focal_t_maskrcnn_1x.py'

model = dict(
    backbone=dict(
        use_shift=True,
        init_cfg=dict(checkpoint='work_dirs/focal_t_shift_in1k/epoch_300.pth'),
    )
)
