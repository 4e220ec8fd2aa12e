# SPDX-License-Identifier: Apache-2.0
"""Differences of Focal-S from Focal-T, for ``model.backbone`` of a Focal-T config."""

focal_s = dict(
    arch='small',
    drop_path_rate=0.3,
    init_cfg=dict(
        type='FocalPretrained',
        checkpoint='{{$FOCAL_S_CKPT:checkpoints/focal-small-is224-ws7.pth}}',
    ),
)
