# SPDX-License-Identifier: Apache-2.0
"""COCO with stuff maps for HTC++: short side 400-1400, InstaBoost, tested at (1600, 1400).

Stuff maps: https://github.com/nightrome/cocostuff, stuffthingmaps_trainval2017.zip.
InstaBoost: ``pip install scikit-image``, then ``pip install --no-deps instaboostfast``, which else
brings a second OpenCV; without the package training does not start.
To do without it, override ``train_dataloader.dataset.pipeline``.
"""

_base_ = 'coco_instance.py'

meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    # of mmfocal.detection; pastes instances, but not their pixels of the stuff map
    dict(type='RepairedInstaBoost'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True),
    dict(type='RandomResize', scale=[(1600, 400), (1600, 1400)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
# choice: the test scale as in CBNetV2's HTC++; the paper does not specify it
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1600, 1400), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]
# choice: the views of CBNetV2's HTC++; the paper does not specify views
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=scale, keep_ratio=True)
                for scale in ((1600, 1000), (1600, 1400), (1800, 1200), (1800, 1600))
            ],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='PackDetInputs', meta_keys=(*meta_keys, 'flip', 'flip_direction'))],
        ],
    ),
]
train_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img='train2017/', seg='stuffthingmaps/train2017/'),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
