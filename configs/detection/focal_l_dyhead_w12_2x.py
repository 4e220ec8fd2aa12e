# SPDX-License-Identifier: Apache-2.0
"""Window 12, inferred from the paper's parameter count of DyHead."""

_base_ = 'focal_l_dyhead_2x.py'

# needs a classifier of window 12: focal_l_in22k.py with window_size=12 at 384 pixels, which are as
# many windows as 224 pixels are with windows of 7, so that its coarse regions stay
checkpoint = '{{$FOCAL_L_W12_CKPT:checkpoints/focal-large-in22k-is384-ws12.pth}}'
model = dict(backbone=dict(window_size=12, init_cfg=dict(checkpoint=checkpoint)))
