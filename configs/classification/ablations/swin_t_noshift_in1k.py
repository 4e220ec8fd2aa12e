# SPDX-License-Identifier: Apache-2.0
"""Table 8: Swin-T without shift."""

_base_ = 'swin_t_in1k.py'

model = dict(backbone=dict(stage_cfgs=dict(block_cfgs=dict(shift=False))))
