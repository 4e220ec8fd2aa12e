# SPDX-License-Identifier: Apache-2.0
"""Table 9: Swin-T with depths 2-2-2-2."""

_base_ = 'swin_t_maskrcnn_1x.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=96, depths=[2, 2, 2, 2], num_heads=[3, 6, 12, 24]),
        init_cfg=dict(checkpoint='work_dirs/swin_t_d2222_in1k/epoch_300.pth'),
    )
)
