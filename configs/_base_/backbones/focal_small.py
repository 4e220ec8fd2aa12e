# SPDX-License-Identifier: Apache-2.0
"""Focal-S as a difference to Focal-T; ``model.backbone`` of a Focal-T config takes it."""

size = dict(
    arch='small',
    init_cfg=dict(
        type='FocalPretrained',
        checkpoint='{{$FOCAL_S_CKPT:checkpoints/focal-small-is224-ws7.pth}}',
    ),
)
