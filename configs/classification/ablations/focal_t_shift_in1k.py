# SPDX-License-Identifier: Apache-2.0
"""Table 8: windows of every other block shifted by 3."""

_base_ = '../focal_t_in1k.py'

model = dict(backbone=dict(use_shift=True))
