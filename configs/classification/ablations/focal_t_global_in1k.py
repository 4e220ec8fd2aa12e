# SPDX-License-Identifier: Apache-2.0
"""Figure 5: window and coarse keys only."""

_base_ = '../focal_t_in1k.py'

model = dict(backbone=dict(expand_sizes=(0, 0, 0, 0)))
