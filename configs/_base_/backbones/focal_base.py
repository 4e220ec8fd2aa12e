# SPDX-License-Identifier: Apache-2.0
"""Focal-B as a difference to Focal-T; ``model.backbone`` of a Focal-T config takes it."""

size = dict(
    arch='base',
    init_cfg=dict(
        type='FocalPretrained',
        checkpoint='{{$FOCAL_B_CKPT:checkpoints/focal-base-is224-ws7.pth}}',
    ),
)
channels = [128, 256, 512, 1024]
