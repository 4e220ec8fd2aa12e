# SPDX-License-Identifier: Apache-2.0
"""FPN and focal loss: neck and class loss that the authors of RepPointsV2 published."""

fpn = dict(
    neck=dict(
        _delete_=True,
        type='FPN',
        in_channels=[192, 384, 768],
        out_channels=256,
        add_extra_convs='on_input',
        num_outs=5,
        norm_cfg=dict(type='GN', num_groups=32),
    ),
    bbox_head=dict(
        loss_cls=dict(
            _delete_=True,
            type='FocalLoss',
            use_sigmoid=True,
            gamma=2.0,
            alpha=0.25,
            loss_weight=1.0,
        )
    ),
)
