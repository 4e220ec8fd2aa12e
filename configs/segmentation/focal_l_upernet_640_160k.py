# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/upernet.py',
    '../_base_/backbones/focal_tiny.py',
    '../_base_/backbones/focal_large.py',
    '../_base_/datasets/ade20k_640.py',
    '../_base_/schedules/ade20k_160k.py',
    '../_base_/default_runtime_mmseg.py',
]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    # choice: drop path as for the other sizes; the paper does not specify it
    backbone={**_base_.backbone, **_base_.focal_l, 'drop_path_rate': 0.3},
    decode_head=dict(in_channels=_base_.focal_l_channels),
    auxiliary_head=dict(in_channels=_base_.focal_l_channels[2]),
)
