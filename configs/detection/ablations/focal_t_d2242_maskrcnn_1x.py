# SPDX-License-Identifier: Apache-2.0
"""Table 9: depths 2-2-4-2."""

_base_ = '../focal_t_maskrcnn_1x.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=96, depths=(2, 2, 4, 2), num_heads=(3, 6, 12, 24)),
        init_cfg=dict(checkpoint='work_dirs/focal_t_d2242_in1k/epoch_300.pth'),
    )
)
