# SPDX-License-Identifier: Apache-2.0
_base_ = [
    'mmpretrain::_base_/models/swin_transformer/tiny_224.py',  # head, Mixup and CutMix
    '../_base_/backbones/focal_tiny.py',
    '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/imagenet_300e.py',
    '../_base_/default_runtime_mmpretrain.py',
]

# from scratch; the settings of the released classifiers at 224 pixels
backbone = dict(focal_windows=(7, 5, 3, 1), expand_sizes=(3, 3, 3, 0), out_indices=(3,))
backbone = {**_base_.backbone, **backbone}
del backbone['init_cfg']  # deleted, because MMEngine cannot merge --cfg-options into None
model = dict(backbone=dict(_delete_=True, **backbone))
