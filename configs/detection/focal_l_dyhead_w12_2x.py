# SPDX-License-Identifier: Apache-2.0
"""Window 12, inferred from the paper's parameter count of DyHead."""

_base_ = 'focal_l_dyhead_2x.py'

# needs a classifier with window 12: focal_l_in22k.py with window_size=12 at 384 pixels. This gives
# as many windows as window 7 at 224 pixels, so the coarse regions are the same
checkpoint = '{{$FOCAL_L_W12_CKPT:checkpoints/focal-large-in22k-is384-ws12.pth}}'
model = dict(backbone=dict(window_size=12, init_cfg=dict(checkpoint=checkpoint)))
