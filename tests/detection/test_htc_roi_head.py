# SPDX-License-Identifier: Apache-2.0
"""HTC's masks: the mean of three stages that differ, in plain tests and with views."""

import pytest
import torch
from mmdet.structures.bbox import bbox2roi
from mmengine.dataset import pseudo_collate
from torch import nn

from mmfocal.detection import AveragedHTCRoIHead, MaskTTAModel
from tests.helpers.small_detectors import blobs, build, collate, load, view

pytestmark = pytest.mark.filterwarnings('ignore:To copy construct')  # the host's paste


@pytest.fixture
def pasted(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Mask probabilities that the heads paste."""
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead

    found, paste = [], FCNMaskHead.predict_by_feat

    def keep(self: nn.Module, mask_preds: tuple, *args, **kwargs) -> list:
        found.extend(mask_preds)
        return paste(self, mask_preds, *args, **kwargs)

    monkeypatch.setattr(FCNMaskHead, 'predict_by_feat', keep)
    return found


def stage_masks(detector: nn.Module, image: torch.Tensor, boxes: torch.Tensor) -> list:
    """Mask probabilities of each stage, from the forward pass of its loss."""
    data = detector.data_preprocessor(pseudo_collate([load(image, view())]))
    maps, head = detector.extract_feat(data['inputs']), detector.roi_head
    semantic = head.semantic_head(maps)[1] if head.with_semantic else None
    return [
        head._mask_forward(stage, maps, bbox2roi([boxes]), semantic)['mask_preds'].sigmoid()
        for stage in range(head.num_stages)
    ]


@pytest.mark.parametrize('name', ['averaged-htc', 'averaged-htc-without-semantic'])
@torch.no_grad()
def test_masks_are_the_mean_of_three_stages(name, pasted):
    detector, image = build(name), blobs()
    assert type(detector.roi_head) is AveragedHTCRoIHead
    (plain,) = detector.test_step(pseudo_collate([load(image, view())]))
    boxes = plain.pred_instances.bboxes
    (merged,) = MaskTTAModel(module=detector).test_step(collate(image, views=[view()]))
    assert len(boxes) >= 5 and len(pasted) == 2
    stages = stage_masks(detector, image, boxes)
    assert all((stages[i] - stages[i - 1]).abs().max() > 0.05 for i in range(3))
    torch.testing.assert_close(pasted[0], sum(stages) / 3, atol=1e-5, rtol=1e-4)
    stages = stage_masks(detector, image, merged.pred_instances.bboxes)
    torch.testing.assert_close(pasted[1], sum(stages) / 3, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_boxes_and_parameters_are_the_hosts():
    torch.manual_seed(0)
    averaged, host = build('averaged-htc'), build('htc')
    averaged.load_state_dict(host.state_dict())
    data = pseudo_collate([load(blobs(), view())])
    (found,), (expected,) = (model.test_step(data) for model in (averaged, host))
    assert len(expected.pred_instances) >= 5
    assert found.pred_instances.bboxes.equal(expected.pred_instances.bboxes)
    assert not found.pred_instances.masks.equal(expected.pred_instances.masks)
