# SPDX-License-Identifier: Apache-2.0
"""Views merged inside a two-stage detector, against plain inference by the host."""

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import nn

from mmfocal.detection import MaskTTAModel
from tests.helpers.small_detectors import blobs, build, collate, load, view

pytestmark = pytest.mark.filterwarnings('ignore:To copy construct')  # the host's paste

WITH_MASKS = ('mask-rcnn', 'cascade', 'averaged-htc', 'htc-without-semantic')
DIRECTIONS = ('horizontal', 'vertical', 'diagonal')


@pytest.fixture(scope='module', params=WITH_MASKS)
def detector(request) -> nn.Module:
    torch.manual_seed(0)
    return build(request.param)


@pytest.fixture
def image() -> np.ndarray:
    return blobs()


@torch.no_grad()
def plain(detector: nn.Module, image: np.ndarray, scale: float = 1.0) -> InstanceData:
    return detector.test_step(pseudo_collate([load(image, view(scale))]))[0].pred_instances


@torch.no_grad()
def augmented(
    detector: nn.Module, image: np.ndarray, *views: list[dict], **tta_cfg
) -> InstanceData:
    model = MaskTTAModel(tta_cfg, module=detector)
    return model.test_step(collate(image, views=views))[0].pred_instances


def mirror(image: np.ndarray, direction: str) -> np.ndarray:
    axes = dict(horizontal=1, vertical=0, diagonal=(0, 1))
    return np.ascontiguousarray(np.flip(image, axes[direction]))


def unflipped(found: InstanceData, image: np.ndarray, direction: str) -> InstanceData:
    """Mirror predictions by plain geometry, independently of the package."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = found.bboxes.unbind(1)
    masks = found.masks
    if direction != 'vertical':
        x1, x2, masks = width - x2, width - x1, masks.flip(2)
    if direction != 'horizontal':
        y1, y2, masks = height - y2, height - y1, masks.flip(1)
    return InstanceData(
        bboxes=torch.stack([x1, y1, x2, y2], 1),
        scores=found.scores,
        labels=found.labels,
        masks=masks,
    )


def in_the_order_of(expected: InstanceData, found: InstanceData) -> InstanceData:
    """Reorder detections, because the order of scores that differ only by rounding is random."""
    apart = torch.cdist(expected.bboxes, found.bboxes)
    apart += 1000.0 * (expected.labels[:, None] != found.labels)
    return found[torch.from_numpy(linear_sum_assignment(apart)[1])]


def assert_same(found: InstanceData, expected: InstanceData, replaced: float = 0) -> None:
    """Compare detections; a share of ``replaced`` may differ."""
    assert len(found) == len(expected) >= 5, 'too few detections to tell'
    found = in_the_order_of(expected, found)
    same = (found.bboxes - expected.bboxes).abs().amax(1) < 0.1
    same &= found.labels == expected.labels
    assert (~same).float().mean() <= replaced
    found, expected = found[same], expected[same]
    assert found.scores.std() > 0.03 and found.labels.unique().numel() > 1
    assert (found.labels == expected.labels).all()
    for key in ('scores', 'bboxes'):
        torch.testing.assert_close(found[key], expected[key], atol=1e-4, rtol=1e-4)
    wrong = (found.masks != expected.masks).sum() / expected.masks.sum()
    assert expected.masks.sum() > 1000 and wrong < 1e-3, wrong


def test_one_unchanged_view_is_plain_inference(detector, image):
    assert_same(augmented(detector, image, view()), plain(detector, image))


def test_one_resized_view_is_plain_inference_at_that_size(detector, image):
    assert_same(augmented(detector, image, view(1.5)), plain(detector, image, scale=1.5))


@pytest.mark.parametrize('direction', DIRECTIONS)
def test_one_mirrored_view_is_plain_inference_mirrored_back(detector, image, direction):
    """The image is mirrored by hand, because the hosts' cascades do not support flips."""
    expected = unflipped(plain(detector, mirror(image, direction), 1.25), image, direction)
    assert_same(augmented(detector, image, view(1.25, direction)), expected)


def test_duplicate_views_change_nothing(detector, image):
    views = [view(), view(1.25), view(flip='horizontal')]
    expected = augmented(detector, image, *views)
    assert_same(augmented(detector, image, *views, *views), expected)
    differs = plain(detector, image)
    assert len(differs) != len(expected) or not differs.scores.allclose(expected.scores)


def test_order_of_views_does_not_matter(detector, image):
    views = [view(), view(1.25, 'vertical'), view(flip='horizontal'), view(0.75)]
    assert_same(augmented(detector, image, *views[::-1]), augmented(detector, image, *views))


@pytest.mark.parametrize('direction', DIRECTIONS)
def test_an_image_and_its_mirror_image_give_mirrored_results(detector, image, direction):
    """Each size is a view with and without flip, so that both images have the same views.

    Sums over a mirrored image are rounded differently. If an overlap is near the threshold of NMS,
    another detection may be kept.
    """
    views = [view(scale, flip) for scale in (1.0, 1.25) for flip in (None, direction)]
    found = augmented(detector, mirror(image, direction), *views)
    expected = augmented(detector, image, *views)
    assert_same(unflipped(found, image, direction), expected, replaced=0.05)


@pytest.mark.parametrize('name', ['mask-rcnn', 'averaged-htc'])
def test_soft_nms(name, image):
    soft = dict(type='soft_nms', iou_threshold=0.1)  # boxes of random weights overlap little
    detector = build(name, nms=soft, score_thr=0.001)
    expected = plain(detector, image)
    assert_same(augmented(detector, image, view(), view()), expected)
    hard = augmented(detector, image, view(), nms=dict(type='nms', iou_threshold=0.1))
    assert hard.scores.tolist() != expected.scores.tolist()


def test_settings_of_the_model_can_be_overridden(detector, image):
    found = augmented(detector, image, view(), max_per_img=3)
    assert len(found) == 3
    found = augmented(detector, image, view(), score_thr=0.2)
    assert len(found) and found.scores.min() > 0.2
    with pytest.raises(ValueError, match=r"unknown keys \['iou_thr'\], expected some of \['mask_"):
        MaskTTAModel(dict(iou_thr=0.5), module=detector)


@pytest.mark.parametrize('nothing', ['proposals', 'detections'])
def test_nothing_is_found(detector, image, nothing, monkeypatch):
    cfg = dict(score_thr=2.0) if nothing == 'detections' else {}
    if nothing == 'proposals':
        monkeypatch.setitem(detector.rpn_head.test_cfg, 'min_bbox_size', 1000)
    found = augmented(detector, image, view(), view(1.25, 'horizontal'), **cfg)
    assert found.bboxes.shape == (0, 4) and found.masks.shape == (0, 96, 128)
    assert found.scores.shape == found.labels.shape == (0,)
    assert found.labels.dtype == torch.long and found.masks.dtype == torch.bool


def test_every_image_of_a_batch_is_treated_alone(detector, image):
    views = [view(), view(1.25, 'horizontal')]
    other = np.ascontiguousarray(image[::-1, :96])
    with torch.no_grad():
        batch = MaskTTAModel(module=detector).test_step(collate(image, other, views=views))
    assert [sample.ori_shape for sample in batch] == [(96, 128), (96, 96)]
    for sample, alone in zip(batch, (image, other)):
        assert_same(sample.pred_instances, augmented(detector, alone, *views))


def test_detector_without_masks(image):
    detector = build('faster-rcnn')
    found, expected = augmented(detector, image, view(), view()), plain(detector, image)
    assert len(found) == len(expected) >= 5 and 'masks' not in found
    torch.testing.assert_close(found.bboxes, expected.bboxes, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('retinanet', 'got RetinaNet with rpn_head NoneType and roi_head NoneType'),
        ('sparse-rcnn', 'got SparseRCNN with rpn_head EmbeddingRPNHead and roi_head SparseRoI'),
    ],
)
def test_other_detectors_are_refused_by_name(name, message):
    with pytest.raises(TypeError, match=message):
        MaskTTAModel(module=build(name))


@pytest.mark.parametrize('key', ['scale_factor', 'flip', 'flip_direction'])
def test_views_must_tell_how_they_were_made(image, key):
    keys = ['ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction']
    keys.remove(key)
    steps = [*view()[:-1], dict(type='mmdet.PackDetInputs', meta_keys=keys)]
    with pytest.raises(KeyError, match=f'has no {key!r}.*PackDetInputs'):
        augmented(build('mask-rcnn'), image, steps)


def test_single_images_are_refused(image):
    batch = pseudo_collate([load(image, view())])
    with pytest.raises(TypeError, match=r'list of images per view.*TestTimeAug'):
        MaskTTAModel(module=build('mask-rcnn')).test_step(batch)


def test_weights_are_those_of_the_detector(detector):
    wrapped = MaskTTAModel(module=detector).state_dict()
    assert list(wrapped) == [f'module.{key}' for key in detector.state_dict()]
