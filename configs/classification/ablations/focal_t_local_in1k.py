# SPDX-License-Identifier: Apache-2.0
"""Figure 5: window and neighbor keys only."""

_base_ = '../focal_t_in1k.py'

model = dict(backbone=dict(focal_levels=(1, 1, 1, 1)))
