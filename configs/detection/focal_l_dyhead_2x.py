# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/dyhead.py',
    '../_base_/backbones/focal_tiny.py',
    '../_base_/backbones/focal_large.py',
    '../_base_/datasets/coco_dyhead.py',
    '../_base_/schedules/coco_1x.py',  # 12 epochs, with each image twice
    '../_base_/default_runtime_mmdet.py',
]

# choice: window 7, to share one set of Focal-L weights; focal_l_dyhead_w12_2x.py has 12
# choice: checkpointing and mixed precision (coco_1x.py), which the paper does not name, to fit a
# GPU; mmdet's DyHead has neither (58 GB per GPU): with_cp=False and
# optim_wrapper=dict(type='OptimWrapper')
backbone = {**_base_.backbone, **_base_.focal_l}
model = dict(
    backbone=dict(out_indices=(1, 2, 3), with_cp=True, **backbone),
    neck=[
        dict(_base_.model.neck[0], in_channels=_base_.focal_l_channels[1:]),
        _base_.model.neck[1],
    ],
)
# choice: lr for a batch of 16; DyHead's own is lr=1e-4 for 32
optim_wrapper = dict(optimizer=dict(lr=5e-5))
