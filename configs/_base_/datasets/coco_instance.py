# SPDX-License-Identifier: Apache-2.0
"""COCO boxes and masks at a single scale of (1333, 800)."""

_base_ = ['mmdet::_base_/datasets/coco_instance.py', '../pipelines/views_800.py']

tta_model = dict(type='MaskTTAModel')  # of mmfocal.detection
