# SPDX-License-Identifier: Apache-2.0
"""Figure 5: attention within windows, as in Swin without shift."""

_base_ = '../focal_t_in1k.py'

model = dict(backbone=dict(focal_levels=(1, 1, 1, 1), expand_sizes=(0, 0, 0, 0)))
