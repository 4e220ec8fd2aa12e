# SPDX-License-Identifier: Apache-2.0
"""Table 7: windows of 14."""

_base_ = '../focal_t_maskrcnn_1x.py'

# choice: regions as in the other detectors, because the paper does not specify them; expand sizes
# in proportion to the window: expand_sizes=(6, 6, 6, 6)
model = dict(
    backbone=dict(
        window_size=14,
        init_cfg=dict(checkpoint='work_dirs/focal_t_window14_in1k/epoch_300.pth'),
    )
)
