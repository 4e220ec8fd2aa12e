# SPDX-License-Identifier: Apache-2.0
_base_ = 'focal_t_in1k.py'

model = dict(backbone=dict(use_conv_embed=True))
