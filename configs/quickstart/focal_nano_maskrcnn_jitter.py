# SPDX-License-Identifier: Apache-2.0
"""Training for multi-scale testing: digits are flipped and resized, unlike in other configs."""

_base_ = './focal_nano_maskrcnn.py'

load, pack = _base_.train_pipeline[:2], _base_.train_pipeline[-1]
resize = dict(type='RandomResize', scale=(160, 160), ratio_range=(0.8, 1.25), keep_ratio=True)
train_pipeline = [*load, resize, dict(type='RandomFlip', prob=0.5), pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
tta_model = dict(type='MaskTTAModel')
sizes = [dict(type='Resize', scale=(size, size), keep_ratio=True) for size in (128, 160, 200)]
flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[sizes, flips, [dict(type='PackDetInputs')]]),
]
