# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/upernet.py',
    '../_base_/backbones/focal_tiny.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/ade20k_160k.py',
    '../_base_/default_runtime_mmseg.py',
]

# choice: drop path as in Swin's and FocalNet's configs; Swin's text says drop_path_rate=0.2
model = dict(backbone=dict(_base_.backbone, drop_path_rate=0.3))
