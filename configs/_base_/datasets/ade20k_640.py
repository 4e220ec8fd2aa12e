# SPDX-License-Identifier: Apache-2.0
"""ADE20K, crops of 640 pixels, tested at (2560, 640)."""

_base_ = 'ade20k_512.py'

scale = (2560, 640)
load, annotations, resize, crop, *rest = _base_.train_pipeline
larger_crop = dict(crop, crop_size=(640, 640))
train_pipeline = [load, annotations, dict(resize, scale=scale), larger_crop, *rest]
load, resize, *rest = _base_.test_pipeline
test_pipeline = [load, dict(resize, scale=scale), *rest]
load, views = _base_.tta_pipeline
sizes, *rest = views.transforms
larger_sizes = [dict(size, scale=tuple(5 * side // 4 for side in size.scale)) for size in sizes]
tta_pipeline = [load, dict(views, transforms=[larger_sizes, *rest])]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
