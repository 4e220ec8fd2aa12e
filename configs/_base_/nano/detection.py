# SPDX-License-Identifier: Apache-2.0
"""Settings that small detectors for digit scenes share: everything except the model."""

_base_ = [
    '../datasets/digit_scenes_det.py',
    '../schedules/nano.py',
    '../default_runtime_mmdet.py',
]

head_channels = 64  # of the neck and the heads; backbones have 32, 64, 128 and 256
# In a few minutes, many small batches train better than half as many batches of twice the size.
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3), clip_grad=dict(max_norm=5.0))
auto_scale_lr = dict(base_batch_size=4)
default_hooks = _base_.frequent_hooks
log_processor = dict(window_size=20, by_epoch=False)
