# SPDX-License-Identifier: Apache-2.0
"""Pre-training for HTC++, DyHead and UperNet at 640 pixels; not run."""

_base_ = ['focal_t_in1k.py', '../_base_/backbones/focal_large.py']

# choice: Swin's recipe on ImageNet-22K (fall 2011 release), for which there is no validation set;
# the paper says "common practice"
classes = 21841
data_preprocessor = dict(num_classes=classes)
model = dict(
    backbone=dict(
        arch=_base_.focal_l.arch,
        drop_path_rate=_base_.focal_l.drop_path_rate,
        with_cp=True,
    ),
    head=dict(in_channels=_base_.focal_l_channels[-1], num_classes=classes),
)
# choice: weight decay as in Swin's text; its released config has weight_decay=0.05
optim_wrapper = dict(optimizer=dict(weight_decay=0.01))
train_dataloader = dict(
    batch_size=128,  # 32 GPUs x 128 images
    dataset=dict(type='ImageNet21k', data_root='data/imagenet21k'),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=5, convert_to_iter_based=True),
    dict(
        type='LinearLR',
        start_factor=1.0,
        end_factor=0.01,
        begin=5,
        end=90,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=90)
auto_scale_lr = dict(base_batch_size=4096)
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
