# SPDX-License-Identifier: Apache-2.0
"""Swin's training views: short side 480-800, half of the images cropped first (DETR's policy)."""

scales = [(short, 1333) for short in range(480, 801, 32)]
# choice: crops as in Swin's detection code; the paper names only the resizing. Without crops:
# crop_policy = [dict(type='RandomFlip', prob=0.5), dict(type='RandomChoiceResize', scales=scales,
# keep_ratio=True), dict(type='PackDetInputs')]
crop_policy = [
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)],
            [
                dict(
                    type='RandomChoiceResize',
                    scales=[(400, 1333), (500, 1333), (600, 1333)],
                    keep_ratio=True,
                ),
                dict(
                    type='RandomCrop',
                    crop_type='absolute_range',
                    crop_size=(384, 600),
                    allow_negative_crop=True,
                ),
                dict(type='RandomChoiceResize', scales=scales, keep_ratio=True),
            ],
        ],
    ),
    dict(type='PackDetInputs'),
]
