# SPDX-License-Identifier: Apache-2.0
_base_ = ['../_base_/nano_maskrcnn.py', '../_base_/backbones/focal_nano.py']

model = dict(backbone=dict(_delete_=True, **_base_.backbone))
