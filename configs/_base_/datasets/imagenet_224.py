# SPDX-License-Identifier: Apache-2.0
"""ImageNet-1K with Swin's augmentation, 16 GPUs x 64 images; ``--tta`` averages over flips."""

_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

# choice: RandomErasing as in the released code; the paper's text excludes it. Without it:
# train_pipeline = [step for step in _base_.train_pipeline if step['type'] != 'RandomErasing']
# train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

tta_model = dict(type='AverageClsScoreTTA')
tta_pipeline = [
    *_base_.test_pipeline[:-1],
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='PackInputs')],
        ],
    ),
]
