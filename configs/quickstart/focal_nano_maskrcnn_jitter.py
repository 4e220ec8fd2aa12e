# SPDX-License-Identifier: Apache-2.0
"""Training for multi-scale testing: digits are flipped and resized, unlike in other configs."""

_base_ = './focal_nano_maskrcnn.py'

load, pack = _base_.train_pipeline[:2], _base_.train_pipeline[-1]
resize = dict(type='RandomResize', scale=(160, 160), ratio_range=(0.8, 1.25), keep_ratio=True)
train_pipeline = [*load, resize, dict(type='RandomFlip', prob=0.5), pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
load_image, views = _base_.tta_pipeline
sizes, no_flip, pack_view = views.transforms
flips = [*no_flip, dict(type='RandomFlip', prob=1.0)]
tta_pipeline = [load_image, dict(views, transforms=[sizes, flips, pack_view])]
