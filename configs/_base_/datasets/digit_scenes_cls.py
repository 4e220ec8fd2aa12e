# SPDX-License-Identifier: Apache-2.0
"""Single digits as an ImageNet-style folder; classes are the folder names, sorted."""

data_root = 'data/digit_scenes/classification'
data_preprocessor = dict(
    num_classes=10, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(56, 56)),  # maps of 14 and 7 rows are multiples of the window
    dict(type='PackInputs'),
]
# Each scan has four images that differ in position and color, so a few epochs need no
# augmentation. Flips would be wrong, because digits are not symmetric.
train_pipeline = pipeline
tta_model = dict(type='AverageClsScoreTTA')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(size, size)) for size in (48, 56, 64)],
            [dict(type='PackInputs')],
        ],
    ),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset', data_root=data_root, data_prefix='train', pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='val', pipeline=pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
