# SPDX-License-Identifier: Apache-2.0
"""300 epochs of AdamW at total batch 1024, mixed precision."""

_base_ = 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py'

optim_wrapper = dict(type='AmpOptimWrapper', clip_grad=dict(max_norm=5.0))
# choice: the cosine spans all 300 epochs, warm-up included, as in the released code;
# mmpretrain's starts after the warm-up: begin=20 without T_max
# choice: warm-up from 1e-6 as in the released code; the paper says 1e-5: start_factor=1e-2
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=0,
        T_max=300,
        convert_to_iter_based=True,
    ),
]
