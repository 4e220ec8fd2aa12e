# SPDX-License-Identifier: Apache-2.0
"""COCO boxes with a short side of 480-960 pixels and no crops."""

_base_ = 'coco_detection.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='RandomChoiceResize',
        # choice: the range of the released config; Swin's text says 480-800: range(480, 801, 32)
        scales=[(short, 1333) for short in range(480, 961, 32)],
        keep_ratio=True,
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
