# SPDX-License-Identifier: Apache-2.0
"""Table 7: Swin-T with windows of 14."""

_base_ = 'swin_t_in1k.py'

model = dict(backbone=dict(stage_cfgs=[dict(window_size=size) for size in (14, 14, 14, 7)]))
