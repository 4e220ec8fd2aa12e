# SPDX-License-Identifier: Apache-2.0
"""12 epochs of AdamW at total batch 16, mixed precision."""

optim_wrapper = dict(
    type='AmpOptimWrapper',  # its loss scale is dynamic; fp32: type='OptimWrapper'
    # dtype='bfloat16',  # from Ampere on: no overflow
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    # substrings of parameter names; the second covers all three kinds of bias table
    paramwise_cfg=dict(
        custom_keys={
            'absolute_pos_embed': dict(decay_mult=0.0),
            'relative_position_bias_table': dict(decay_mult=0.0),
            'norm': dict(decay_mult=0.0),
        }
    ),
)
# choice: warm-up as in Swin's detection code; mmdet's Swin configs have end=1000
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=16)  # 8 GPUs x 2 images
