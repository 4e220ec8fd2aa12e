# SPDX-License-Identifier: Apache-2.0
"""Figure 5: windows and pooled windows."""

_base_ = '../focal_t_in1k.py'

model = dict(backbone=dict(expand_sizes=(0, 0, 0, 0)))
