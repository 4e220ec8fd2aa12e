# SPDX-License-Identifier: Apache-2.0
"""Focal-T for dense tasks. Configs use the dict as ``_base_.backbone`` and add differences."""

backbone = dict(
    type='FocalTransformer',
    arch='tiny',
    # choice: the paper's drop path for all detectors; Swin's and FocalNet's 1x configs have 0.1,
    # FocalNet's ATSS and Sparse R-CNN configs have 0.3
    drop_path_rate=0.2,
    # ImageNet training has (7, 5, 3, 1) and (3, 3, 3, 0); the loader resizes the bias tables
    focal_windows=(15, 13, 9, 7),
    expand_sizes=(3, 3, 3, 3),
    init_cfg=dict(
        type='FocalPretrained',
        checkpoint='{{$FOCAL_T_CKPT:checkpoints/focal-tiny-is224-ws7.pth}}',
    ),
)
