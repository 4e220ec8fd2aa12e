# SPDX-License-Identifier: Apache-2.0
"""Six dynamic head blocks between FPN and ATSS's predictors, without a backbone."""

_base_ = 'atss.py'

model = dict(
    data_preprocessor=dict(pad_size_divisor=128),
    neck=[
        _base_.model.neck,
        dict(
            type='DyHead',
            in_channels=256,
            out_channels=256,
            num_blocks=6,
            zero_init_offset=False,  # as in the DyHead authors' code
        ),
    ],
    bbox_head=dict(
        pred_kernel_size=1,
        stacked_convs=0,
        anchor_generator=dict(center_offset=0.5),
    ),
)
