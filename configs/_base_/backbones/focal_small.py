# SPDX-License-Identifier: Apache-2.0
"""Focal-S as a difference to Focal-T; ``model.backbone`` of a Focal-T config takes it."""

focal_s = dict(
    arch='small',
    drop_path_rate=0.3,
    init_cfg=dict(
        type='FocalPretrained',
        checkpoint='{{$FOCAL_S_CKPT:checkpoints/focal-small-is224-ws7.pth}}',
    ),
)
