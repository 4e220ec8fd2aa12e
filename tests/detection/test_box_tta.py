# SPDX-License-Identifier: Apache-2.0
"""Test scales that keep boxes of a size range only."""

import pytest
import torch
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor

from mmfocal.detection import SizeFilteredDetTTAModel
from tests.helpers import small_detectors

TTA_CFG = ConfigDict(nms=dict(type='nms', iou_threshold=0.6), max_per_img=100)
RANGES = [(400, 96, 10000), (800, 0, 192)]


class Detector(BaseModel):
    """A stand-in for any detector; views are predicted before they are merged."""

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'):
        raise NotImplementedError


def view(short: int, boxes: list[list[float]], ori_shape=(400, 600), flip=False) -> DetDataSample:
    """Predictions of a view in pixels of the original image, as mmdet delivers them."""
    factor = short / ori_shape[0]
    sample = DetDataSample(
        metainfo=dict(
            ori_shape=ori_shape,
            scale=(3000, short),
            scale_factor=(factor, factor),
            flip=flip,
            flip_direction='horizontal' if flip else None,
        )
    )
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor(boxes).reshape(-1, 4),
        scores=torch.linspace(0.9, 0.5, len(boxes)),
        labels=torch.zeros(len(boxes), dtype=torch.long),
    )
    return sample


def merge(*views: DetDataSample, ranges=RANGES) -> list[list[float]]:
    model = SizeFilteredDetTTAModel(size_ranges=ranges, tta_cfg=TTA_CFG, module=Detector())
    (sample,) = model.merge_preds([views])
    return sample.pred_instances.bboxes.tolist()


def square(x: float, side: float) -> list[float]:
    return [x, 0.0, x + side, side]


def test_a_scale_keeps_boxes_of_its_range_in_its_own_pixels():
    # 95 and 97 pixels at scale 400, 190 and 194 at scale 800
    boxes = [square(0, 95), square(300, 97)]
    assert merge(view(400, boxes)) == [square(300, 97)]
    assert merge(view(800, boxes)) == [square(0, 95)]
    long = [0.0, 0.0, 200.0, 50.0]  # the square root of its area is 100
    assert merge(view(400, [long])) == [long] and merge(view(800, [long])) == []


def test_scales_complement_each_other():
    small, large, flipped = square(0, 40), square(300, 200), square(100, 200)
    views = [view(400, [small, large]), view(800, [large, small])]
    assert sorted(merge(*views)) == sorted([small, large])
    mirrored = view(400, [flipped], flip=True)  # 600 pixels wide
    assert merge(*views, mirrored)[0] == large and len(merge(*views, mirrored)) == 2


def test_without_limits_it_is_the_hosts_merge():
    everything = [(400, 0, 1e5), (800, 0, 1e5)]

    def views() -> list[DetDataSample]:
        boxes = torch.rand(30, 4, generator=torch.Generator().manual_seed(0)) * 200
        boxes[:, 2:] += boxes[:, :2]
        return [view(400, boxes[:20].tolist()), view(800, boxes[10:].tolist(), flip=True)]

    (expected,) = DetTTAModel(tta_cfg=TTA_CFG, module=Detector()).merge_preds([views()])
    assert merge(*views(), ranges=everything) == expected.pred_instances.bboxes.tolist()
    assert 0 < len(merge(*views())) < len(expected.pred_instances)


@torch.no_grad()
def test_a_detector_with_two_scales():
    views = [small_detectors.view(1.0), small_detectors.view(2.0, 'horizontal')]
    for *_, pack in views:
        pack['meta_keys'] = (
            *('ori_shape', 'img_shape', 'scale', 'scale_factor'),
            *('flip', 'flip_direction'),
        )
    ranges = [(96, 0, 40), (192, 120, 1000)]  # nothing from 40 to 60 pixels of the image
    model = SizeFilteredDetTTAModel(
        size_ranges=ranges, tta_cfg=TTA_CFG, module=small_detectors.build('retinanet')
    )
    (sample,) = model.test_step(small_detectors.collate(small_detectors.blobs(), views=views))
    boxes = sample.pred_instances.bboxes
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    assert ((sides < 40) | (sides > 60)).all(), sides
    assert (sides < 40).any() and (sides > 60).any(), sides


def test_nothing_left():
    assert merge(view(400, [square(0, 20)]), view(800, [])) == []


def test_scales_without_range_or_name_are_refused():
    with pytest.raises(KeyError, match=r'size_ranges has no scale 600, .* found \[400, 800\]'):
        merge(view(600, [square(0, 20)]))
    unnamed = view(400, [square(0, 20)])
    del unnamed.scale
    with pytest.raises(KeyError, match="no 'scale': add it to meta_keys"):
        merge(unnamed)
