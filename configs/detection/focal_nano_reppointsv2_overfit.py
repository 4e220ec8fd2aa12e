# SPDX-License-Identifier: Apache-2.0
"""Overfitting test: a small RepPointsV2 from scratch on a few photographs, tested on the same.

It needs an annotation file of a few images (``tools/data/subset_coco.py``).
"""

_base_ = '../quickstart/focal_nano_reppointsv2.py'

max_iters = 800
data_root = 'data/coco/'
ann_file = 'annotations/five.json'
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(400, 240), keep_ratio=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
dataset = dict(
    _delete_=True,
    type='CocoDataset',
    data_root=data_root,
    ann_file=ann_file,
    data_prefix=dict(img='train2017/'),
    pipeline=pipeline,
)
train_dataloader = dict(batch_size=1, dataset=dataset)
val_dataloader = dict(batch_size=1, dataset=dict(dataset, test_mode=True))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + ann_file)
test_evaluator = val_evaluator

model = dict(bbox_head=dict(num_classes=80, point_norm_cfg=None))  # the head as released
auto_scale_lr = dict(base_batch_size=1)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
train_cfg = dict(max_iters=max_iters, val_interval=200)
