# SPDX-License-Identifier: Apache-2.0
"""ImageNet's statistics, for detectors that mmdet has only within whole configs."""

model = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
)
