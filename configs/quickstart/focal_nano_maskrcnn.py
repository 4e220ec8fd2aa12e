# SPDX-License-Identifier: Apache-2.0
_base_ = ['../_base_/nano/maskrcnn.py', '../_base_/backbones/focal_nano.py']

model = dict(backbone=_base_.backbone)
