# SPDX-License-Identifier: Apache-2.0
"""COCO boxes for DyHead: short side 480-1200, long side up to 2000; each image twice an epoch."""

_base_ = 'coco_detection.py'

meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='RandomResize',
        scale=[(2000, 480), (2000, 1200)],
        keep_ratio=True,
        backend='pillow',
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2000, 1200), keep_ratio=True, backend='pillow'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]
view_keys = (*meta_keys, 'scale', 'flip', 'flip_direction')
# choice: ATSS's views (short side, minimum and maximum size of the boxes that are kept, in pixels
# of the view); the paper does not specify views
views = [
    *((400, 96, 10000), (500, 96, 10000), (600, 64, 10000), (640, 64, 10000)),
    *((700, 64, 10000), (900, 0, 10000), (1000, 0, 10000), (1100, 0, 256)),
    *((1200, 0, 256), (1300, 0, 192), (1400, 0, 192), (1800, 0, 96)),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(3000, short), keep_ratio=True, backend='pillow')
                for short, *_ in views
            ],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='PackDetInputs', meta_keys=view_keys)],
        ],
    ),
]
tta_model = dict(
    type='SizeFilteredDetTTAModel',  # of mmfocal.detection
    size_ranges=views,
    tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.6), max_per_img=100),
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=2,
        dataset=dict(_base_.train_dataloader.dataset, pipeline=train_pipeline),
    )
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
