# SPDX-License-Identifier: Apache-2.0
"""COCO boxes with the crop policy of 3x."""

_base_ = ['coco_detection.py', '../pipelines/crop_policy.py']

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    *_base_.crop_policy,
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
