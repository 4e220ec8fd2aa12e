# SPDX-License-Identifier: Apache-2.0
"""Settings that small detectors without masks share: everything except the model."""

_base_ = 'detection.py'

val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
tta_model = dict(
    type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
)
