# SPDX-License-Identifier: Apache-2.0
"""Overfitting test: Focal-T Mask R-CNN from scratch on a few photographs, tested on the same.

It needs an annotation file of a few images (``tools/data/subset_coco.py``).
"""

_base_ = 'focal_t_maskrcnn_3x.py'

max_iters = 360
ann_file = 'annotations/five.json'
backbone = {**_base_.model.backbone, 'drop_path_rate': 0.0}
del backbone['init_cfg']  # deleted, because MMEngine cannot merge --cfg-options into None
model = dict(
    backbone=dict(_delete_=True, **backbone),
    # few boxes per image, because the mask head on 128 boxes would take most of the time
    train_cfg=dict(rcnn=dict(sampler=dict(num=64))),
)

resize = dict(type='Resize', scale=(533, 320), keep_ratio=True)
load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
]
test_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
train_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(ann_file=ann_file, pipeline=[*load, resize, dict(type='PackDetInputs')]),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        ann_file=ann_file,
        data_prefix=dict(img='train2017/'),
        pipeline=[*load, resize, dict(type='PackDetInputs', meta_keys=test_keys)],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/coco/' + ann_file)
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=3e-4), clip_grad=dict(max_norm=5.0))
auto_scale_lr = dict(base_batch_size=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=50, end=max_iters),
]
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=120)
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=120, max_keep_ckpts=2),
)
log_processor = dict(window_size=20, by_epoch=False)
