# SPDX-License-Identifier: Apache-2.0
"""The head: assignment against slow loops, losses against formulas, decoding by hand."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import DeformConv2d
from mmdet.models.dense_heads import RepPointsHead
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor

from mmfocal.detection import RepPointsV2Head
from mmfocal.detection.reppoints_v2_head import snap_to_corners

MODEL = Config.fromfile(
    Path(__file__).resolve().parents[2] / 'configs' / '_base_' / 'models' / 'reppointsv2.py'
).model
STRIDES = (8, 16, 32, 64, 128)
CLASSES = 3
Maps = list[Tensor]
Outputs = tuple[Maps, ...]


def build(**settings) -> RepPointsV2Head:
    """The shipped head, narrow and for three classes."""
    widths = dict.fromkeys(('in_channels', 'feat_channels', 'point_feat_channels'), 16)
    small = dict(num_classes=CLASSES, corner_channels=8, norm_cfg=dict(type='GN', num_groups=4))
    cfg = dict(MODEL.bbox_head, train_cfg=MODEL.train_cfg, test_cfg=MODEL.test_cfg)
    head = MODELS.build({**cfg, **widths, **small, **settings})
    head.init_weights()
    return head


def map_sizes(height: int, width: int) -> list[tuple[int, int]]:
    return [(-(-height // stride), -(-width // stride)) for stride in STRIDES]


def features(height: int, width: int, images: int = 2) -> Maps:
    return [torch.randn(images, 16, *size) for size in map_sizes(height, width)]


def instances(*boxes: tuple[float, ...]) -> InstanceData:
    """Boxes of class 0, 1, 2, 0, ..."""
    return InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float).reshape(-1, 4),
        labels=torch.arange(len(boxes)) % CLASSES,
    )


def image(height: int, width: int) -> dict:
    return dict(img_shape=(height, width), pad_shape=(height, width), scale_factor=(1.0, 1.0))


GTS = [
    instances((10, 20, 60, 90), (9, 21, 60, 90), (100, 4, 116, 30), (5, 5, 250, 180)),
    instances((40.2, 40.1, 41, 42), (0, 0, 128, 96)),
]
METAS = [image(192, 256), image(96, 160)]  # the second one is padded to the first one's size


def make_grid(head: RepPointsV2Head, metas: list[dict]):
    return head._make_grid([torch.empty(1, 1, *size) for size in map_sizes(192, 256)], metas)


def is_valid(point: Tensor, meta: dict) -> bool:
    x, y = point[:2].tolist()
    height, width = meta['pad_shape']
    return x < width and y < height


def check_targets(targets, slow: Callable) -> None:
    """Compare with ``slow(i, point) -> box index, None for background or -1 for neither``."""
    for i, gt in enumerate(GTS):
        expected = slow(i)
        for p, box in expected.items():
            found = (targets.labels[i, p].item(), targets.boxes[i, p].tolist())
            if box >= 0:
                assert found == (gt.labels[box].item(), gt.bboxes[box].tolist()), (i, p)
            else:
                assert found == (CLASSES, [0] * 4), (i, p)
            assert targets.positive[i, p].item() is (box >= 0)
    assert targets.avg_factor == targets.positive.sum()


def test_first_boxes_are_assigned_to_the_nearest_point_of_their_level():
    head = build()
    grid = make_grid(head, METAS)
    centers = grid.points.expand(2, -1, -1)
    targets = head.get_targets(head.init_assigner, centers, grid, GTS, [None, None])

    def slow(i: int) -> dict[int, int]:
        owners: dict[int, tuple[float, int]] = {}
        for g, (x1, y1, x2, y2) in enumerate(GTS[i].bboxes.tolist()):
            w, h = x2 - x1, y2 - y1
            level = min(max(int((math.log2(w / 4) + math.log2(h / 4)) / 2), 3), 7)
            distance = {
                p: math.hypot((point[0] - (x1 + x2) / 2) / w, (point[1] - (y1 + y2) / 2) / h)
                for p, point in enumerate(grid.points)
                if is_valid(point, METAS[i]) and point[2] == 2**level
            }
            p = min(distance, key=distance.get)
            owners[p] = min(owners.get(p, (math.inf, -1)), (distance[p], g))
        return {p: owners.get(p, (0, -1))[1] for p in range(len(grid.points))}

    check_targets(targets, slow)
    levels = [grid.points[p, 2].item() for p in targets.positive[0].nonzero().flatten()]
    assert levels == [8, 8, 32]  # two boxes share a point, so that one of them is lost
    for i, meta in enumerate(METAS):
        valid = torch.tensor([is_valid(point, meta) for point in grid.points])
        torch.testing.assert_close(targets.weights[i], valid.float())


def iou(a: list[float], b: list[float]) -> float:
    w = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    h = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return w * h / (sum(areas) - w * h)


def atss(boxes: list[list[float]], levels: list[list[int]], gts: list) -> dict[int, int]:
    """Return the ground truth that each box gets, -1 for none."""
    best = {p: (0.0, -1) for level in levels for p in level}
    for g, gt in enumerate(gts):
        middle = ((gt[0] + gt[2]) / 2, (gt[1] + gt[3]) / 2)
        centers = {
            p: ((boxes[p][0] + boxes[p][2]) / 2, (boxes[p][1] + boxes[p][3]) / 2) for p in best
        }
        candidates = [
            p
            for level in levels
            for p in sorted(level, key=lambda p: math.dist(centers[p], middle))[:9]
        ]
        overlaps = torch.tensor([iou(boxes[p], gt) for p in candidates])
        enough = overlaps.mean() + overlaps.std()
        for p, overlap in zip(candidates, overlaps.tolist()):
            (x, y) = centers[p]
            inside = min(x - gt[0], y - gt[1], gt[2] - x, gt[3] - y) > 0.01
            if overlap >= enough and inside and overlap > best[p][0]:
                best[p] = (overlap, g)
    return {p: g for p, (_, g) in best.items()}


def test_final_boxes_are_assigned_by_overlap_with_the_first_ones():
    head = build()
    grid = make_grid(head, METAS)
    reach = grid.points[:, 2:].repeat(1, 2) * torch.tensor([-1, -1, 1, 1])
    boxes = grid.points[:, :2].repeat(1, 2) + reach * torch.empty(2, *reach.shape).uniform_(1, 4)
    targets = head.get_targets(head.refine_assigner, boxes, grid, GTS, [None, None])

    def slow(i: int) -> dict[int, int]:
        levels = [
            [
                p
                for p, point in enumerate(grid.points)
                if point[2] == stride and is_valid(point, METAS[i])
            ]
            for stride in STRIDES
        ]
        return atss(boxes[i].tolist(), levels, GTS[i].bboxes.tolist())

    check_targets(targets, slow)
    assert targets.positive.sum(1).min() > 3


def test_crowds_can_be_left_out():
    train_cfg = Config(MODEL.train_cfg.to_dict())
    train_cfg.refine.assigner.ignore_iof_thr = 0.5
    head = build(train_cfg=train_cfg)
    grid = make_grid(head, METAS[:1])
    boxes = grid.points[:, :2].repeat(1, 2) + torch.tensor([-8.0, -8.0, 8.0, 8.0])
    crowd = InstanceData(bboxes=torch.tensor([[100.0, 100.0, 200.0, 150.0]]))
    targets = head.get_targets(head.refine_assigner, boxes[None], grid, GTS[:1], [crowd])
    x, y = grid.points[:, 0], grid.points[:, 1]
    inside = (x > 108) & (x < 192) & (y > 108) & (y < 142)
    assert inside.sum() > 30
    assert not targets.weights[0, inside].any() and not targets.positive[0, inside].any()
    outside = (x < 84) | (x > 216) | (y < 84) | (y > 166)
    assert targets.weights[0, outside].all()


def flat(maps: Maps) -> Tensor:
    return torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in maps], dim=1)


def boxes_of(pts: Maps, grid) -> Tensor:
    y1, x1, y2, x2 = flat(pts)[..., :4].unbind(-1)
    x, y, stride, _ = grid.points.unbind(1)
    return torch.stack(
        [x + x1 * stride, y + y1 * stride, x + x2 * stride, y + y2 * stride], dim=-1
    )


@pytest.fixture
def trained() -> tuple[RepPointsV2Head, Outputs]:
    """A head that already predicts something, and its predictions."""
    head = build()
    with torch.no_grad():
        head.reppoints_pts_init_out.bias[:4] = torch.tensor([-2.0, -2.0, 2.0, 2.0])
        outs = head(features(192, 256))
    return head, outs


@pytest.fixture
def losses(trained) -> dict[str, Tensor]:
    head, outs = trained
    return head.loss_by_feat(*outs, GTS, METAS)


def positives(trained, stage: str):
    """Grid, assigner's targets, predicted boxes."""
    head, (_, init, refined, *_) = trained
    grid = make_grid(head, METAS)
    first = boxes_of(init, grid)
    if stage == 'init':
        centers = grid.points.expand(2, -1, -1)
        return grid, head.get_targets(head.init_assigner, centers, grid, GTS, [None] * 2), first
    targets = head.get_targets(head.refine_assigner, first, grid, GTS, [None] * 2)
    return grid, targets, boxes_of(refined, grid)


def test_class_loss(trained, losses):
    _, targets, boxes = positives(trained, 'refine')
    logits = flat(trained[1][0])
    total, count = 0.0, 0
    for i in range(2):
        for p in range(logits.shape[1]):
            if targets.weights[i, p] == 0:
                continue
            for c in range(CLASSES):
                prob = 1 / (1 + math.exp(-logits[i, p, c]))
                quality = 0.0
                if targets.labels[i, p] == c:
                    quality = iou(boxes[i, p].tolist(), targets.boxes[i, p].tolist())
                    count += 1
                entropy = -quality * math.log(prob) - (1 - quality) * math.log(1 - prob)
                total += abs(quality - prob) ** 2 * entropy
    assert count > 3
    assert losses['loss_cls'].item() == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize(('stage', 'weight'), [('init', 1.0), ('refine', 2.0)])
def test_box_losses(trained, losses, stage, weight):
    grid, targets, boxes = positives(trained, stage)
    unit = 4 * grid.points[:, 2]
    parts = []
    for i, p in targets.positive.nonzero().tolist():
        x1, y1, x2, y2 = (boxes[i, p] / unit[p]).tolist()
        u1, v1, u2, v2 = (targets.boxes[i, p] / unit[p]).tolist()
        inner = max(min(x2, u2) - max(x1, u1) + 1, 0) * max(min(y2, v2) - max(y1, v1) + 1, 0)
        union = (x2 - x1 + 1) * (y2 - y1 + 1) + (u2 - u1 + 1) * (v2 - v1 + 1) - inner
        hull = (max(x2, u2) - min(x1, u1) + 1) * (max(y2, v2) - min(y1, v1) + 1)
        parts.append(1 - inner / union + (hull - union) / hull)
    expected = weight * sum(parts) / len(parts)
    assert losses[f'loss_pts_{stage}'].item() == pytest.approx(expected, rel=1e-4)


def test_corner_losses(trained, losses):
    head, (*_, scores, offsets, _) = trained
    grid = make_grid(head, METAS)
    heat, shift = head.get_corner_targets(grid, GTS)
    scores, offsets = flat(scores), flat(offsets)
    heat_loss = offset_loss = 0.0
    for corner in range(2):
        total_heat = total_offset = count = 0.0
        for i in range(2):
            for p, point in enumerate(grid.points):
                prob = 1 / (1 + math.exp(-scores[i, p, corner]))
                target = heat[i, p, corner].item()
                if not is_valid(point, METAS[i]):
                    assert target == 0
                elif target == 1:
                    count += 1
                    total_heat -= (1 - prob) ** 2 * math.log(prob)
                    for xy in (2 * corner, 2 * corner + 1):
                        error = abs(offsets[i, p, xy] - shift[i, p, xy]).item()
                        large = error >= 1 / 9
                        total_offset += error - 1 / 18 if large else error**2 * 4.5
                else:
                    total_heat -= (1 - target) ** 4 * prob**2 * math.log(1 - prob)
        heat_loss += 0.25 * total_heat / count / 2
        offset_loss += total_offset / count / 2
    assert losses['loss_heatmap'].item() == pytest.approx(heat_loss, rel=1e-4)
    assert losses['loss_offset'].item() == pytest.approx(offset_loss, rel=1e-4)


def test_foreground_loss(trained, losses):
    logits = trained[1][5]
    positive = negative = weights = count = 0.0
    for i, gt in enumerate(GTS):
        areas = (gt.bboxes[:, 2:] - gt.bboxes[:, :2]).prod(1).clamp(min=1)
        for stride, level in zip(STRIDES, logits):
            for c, y, x in torch.ones_like(level[i]).nonzero().tolist():
                left, top = x * stride // 8, y * stride // 8  # the cell of the finest level
                over = [
                    1 / area.item()
                    for box, label, area in zip(gt.bboxes, gt.labels, areas)
                    if label == c
                    and int(box[0] / 8) <= left <= int(box[2] / 8)
                    and int(box[1] / 8) <= top <= int(box[3] / 8)
                ]
                prob = 1 / (1 + math.exp(-level[i, c, y, x]))
                if over:
                    positive -= 0.25 * max(over) * (1 - prob) ** 2 * math.log(prob)
                    weights += max(over)
                    count += 1
                else:
                    negative -= 0.75 * prob**2 * math.log(1 - prob)
    expected = 0.1 * (positive / weights + negative / count)
    assert losses['loss_foreground'].item() == pytest.approx(expected, rel=1e-4)


def test_focal_loss_serves_as_well():
    focal = dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25)
    head = build(loss_cls=focal)
    loss = head.loss_by_feat(*head(features(192, 256)), GTS, METAS)['loss_cls']
    assert loss.isfinite() and loss > 0


def test_corners_snap_to_the_best_of_the_four_points_around():
    scores = torch.full((1, 2, 4, 6), -5.0)
    offsets = torch.zeros(1, 4, 4, 6)
    scores[0, 0, 1, 2] = 1.0  # top left corners: column 2, row 1
    scores[0, 0, 2, 3] = 2.0
    scores[0, 1, 3, 5] = 3.0  # a bottom right corner in the last point
    offsets[0, :2, 1, 2] = torch.tensor([0.25, -0.5])
    offsets[0, 2:, 3, 5] = torch.tensor([-0.125, 0.5])
    boxes = torch.tensor([[[8.1, 9.0, 47.0, 31.0], [16.0, 10.0, 200.0, 99.0]]])
    found = snap_to_corners(boxes, scores, offsets, stride=8)
    torch.testing.assert_close(
        found,
        torch.tensor(
            [
                [
                    [16 + 2, 8 - 4, 40 - 1, 24 + 4],  # the best beside (1, 1) is (2, 1)
                    [24, 16, 40 - 1, 24 + 4],  # beside (2, 1) the score at (3, 2) is higher
                ]
            ],
            dtype=torch.float,
        ),
    )


@pytest.mark.parametrize('size', [(1, 1), (1, 3), (3, 1)])
def test_corners_snap_on_the_smallest_maps(size):
    scores, offsets = torch.randn(1, 2, *size), torch.zeros(1, 4, *size)
    found = snap_to_corners(torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]), scores, offsets, stride=8)
    assert found.isfinite().all() and found.max() <= 8


def quiet_outputs(images: int = 1) -> Outputs:
    """Outputs for 256x256 pixels in which nothing is found."""
    sizes = map_sizes(256, 256)
    channels = (CLASSES, 18, 18, 2, 4, CLASSES)
    low = (-20.0, 0.0, 0.0, -20.0, 0.0, -20.0)
    return tuple(
        [torch.full((images, c, *size), value) for size in sizes]
        for c, value in zip(channels, low)
    )


@pytest.mark.parametrize(('level', 'source'), [(0, None), (1, 0), (2, 0), (3, 1), (4, 1)])
def test_large_boxes_get_the_corners_that_were_found(level, source):
    head = build().eval()
    outs = quiet_outputs()
    classes, _, refined, scores, offsets, _ = outs
    stride = STRIDES[level]
    y, x = (1, 1) if level == 4 else (2, 1)
    classes[level][0, 1, y, x] = 4.0
    corners = torch.tensor([36.0, 44.0, 130.0, 205.0])
    relative = (corners - torch.tensor([x, y, x, y]) * stride) / stride
    refined[level][0, :4, y, x] = relative[[1, 0, 3, 2]]  # (y, x) of two points
    expected = corners
    if source is not None:
        fine = STRIDES[source]
        shift = torch.tensor([0.25, 0.5, -0.25, 0.125])
        for corner in range(2):
            column, row = (corners[2 * corner : 2 * corner + 2] // fine).long()
            scores[source][0, corner, row, column + 1] = 2.0
            xy = slice(2 * corner, 2 * corner + 2)
            offsets[source][0, xy, row, column + 1] = shift[xy]
        cells = corners // fine + torch.tensor([1, 0, 1, 0])
        expected = (cells + shift) * fine
    (found,) = head.predict_by_feat(*outs, batch_img_metas=[image(256, 256)])
    torch.testing.assert_close(found.bboxes, expected[None])
    assert found.labels.tolist() == [1]
    torch.testing.assert_close(found.scores, torch.tensor([4.0]).sigmoid())


def test_boxes_are_clipped_before_and_after_they_snap():
    head = build().eval()
    outs = quiet_outputs()
    classes, _, refined, scores, offsets, _ = outs
    classes[1][0, 0, 3, 3] = 4.0
    refined[1][0, :4, 3, 3] = torch.tensor([-50.0, -50.0, 50.0, 50.0])
    scores[0][0, 1, 15, 20] = 2.0  # row 120, column 160: beside the corner of the image below
    offsets[0][0, 2:, 15, 20] = 9.0
    (found,) = head.predict_by_feat(*outs, batch_img_metas=[image(120, 160)])
    torch.testing.assert_close(found.bboxes, torch.tensor([[0.0, 0.0, 160.0, 120.0]]))


def test_two_predictions_for_one_object_become_one():
    head = build().eval()
    outs = quiet_outputs()
    classes, _, refined, *_ = outs
    for column, logit in ((4, 1.0), (5, 2.0)):
        classes[0][0, 0, 4, column] = logit
        x = 4.0 - column
        refined[0][0, :4, 4, column] = torch.tensor([-2.0, x - 2, 2.0, x + 2])
    (found,) = head.predict_by_feat(*outs, batch_img_metas=[image(256, 256)])
    assert found.bboxes.tolist() == [[16.0, 16.0, 48.0, 48.0]]
    torch.testing.assert_close(found.scores, torch.tensor([2.0]).sigmoid())


def test_sizes_and_start():
    head = MODELS.build(dict(MODEL.bbox_head, train_cfg=MODEL.train_cfg, test_cfg=MODEL.test_cfg))
    assert sum(p.numel() for p in head.parameters()) == 7_210_442
    head = build()
    rare = -math.log(99)
    for conv in (
        *(head.reppoints_cls_out, head.foreground_out),
        *head.corner_scores,
    ):
        torch.testing.assert_close(conv.bias, torch.full_like(conv.bias, rare))


def test_initial_weights_are_those_of_the_released_head():
    """Normal, except for convolutions with default initialization (Kaiming or PyTorch's)."""
    head = MODELS.build(dict(MODEL.bbox_head, train_cfg=MODEL.train_cfg, test_cfg=MODEL.test_cfg))
    head.init_weights()
    expected = dict.fromkeys(
        (
            *(f'{kind}_convs.{index}.conv' for kind in ('cls', 'reg') for index in range(3)),
            *('shared_conv.conv', 'foreground_out', 'reppoints_cls_conv', 'reppoints_cls_out'),
            *(f'reppoints_pts_init_{part}' for part in ('conv', 'out')),
            *(f'reppoints_pts_refine_{part}' for part in ('conv', 'out')),
            *(f'corner_{kind}.{index}' for kind in ('scores', 'offsets') for index in (0, 1)),
        ),
        0.01,
    )
    expected['foreground_embedding.conv'] = math.sqrt(2 / 256)
    for pool in ('corner_pools.0', 'corner_pools.1'):
        expected |= {f'{pool}.sides.{side}.0.conv': math.sqrt(2 / (9 * 64)) for side in (0, 1)}
        expected[f'{pool}.merge.conv'] = math.sqrt(1 / (3 * 9 * 64))
        expected[f'{pool}.skip.conv'] = math.sqrt(1 / (3 * 256))
        expected[f'{pool}.out.conv'] = math.sqrt(2 / 256)
    convs = {
        name: module.weight.std().item()
        for name, module in head.named_modules()
        if isinstance(module, (torch.nn.Conv2d, DeformConv2d))
    }
    assert convs == pytest.approx(expected, rel=0.08)
    norms = [module for module in head.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert norms and all((norm.weight == 1).all() and not norm.bias.any() for norm in norms)


def test_outputs_agree_with_features_in_size():
    outs = build()(features(120, 264, images=1))
    channels = (CLASSES, 18, 18, 2, 4, CLASSES)
    for maps, width in zip(outs, channels):
        sizes = [(1, width, *size) for size in map_sizes(120, 264)]
        assert [tuple(x.shape) for x in maps] == sizes


def total(losses: dict[str, Tensor]) -> Tensor:
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values()), losses
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    return sum(losses.values())


def test_gradients_reach_every_parameter():
    head = build()
    total(head.loss_by_feat(*head(features(192, 256)), GTS, METAS)).backward()
    lost = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert not lost


@pytest.mark.parametrize(
    ('gts', 'size'),
    [
        ([instances(), instances()], (192, 256)),
        ([instances(), GTS[1]], (192, 256)),
        ([instances((3, 3, 3.2, 3.1)), instances((5, 5, 5, 9))], (192, 256)),
        ([instances((1, 1, 7, 8)), instances()], (8, 8)),
    ],
    ids=['no objects', 'one image without', 'tiny boxes', 'one point per level'],
)
def test_rare_images(gts, size):
    head = build()
    maps = features(*size)
    metas = [image(*size)] * 2
    ignored = [InstanceData(bboxes=torch.zeros(0, 4)), InstanceData(bboxes=torch.ones(1, 4))]
    total(head.loss_by_feat(*head(maps), gts, metas, ignored)).backward()
    # otherwise the processes of a distributed run would wait for each other
    assert not [name for name, p in head.named_parameters() if p.grad is None]
    assert all(p.grad.isfinite().all() for p in head.parameters())
    with torch.no_grad():
        found = head.eval().predict_by_feat(*head(maps), batch_img_metas=metas)
    assert len(found) == 2


def test_mixed_precision_keeps_predictions_and_losses_in_fp32():
    head, maps = build(), features(192, 256)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outs = head(maps)
        loss = total(head.loss_by_feat(*outs, GTS, METAS))
    assert {x.dtype for out in outs for x in out} == {torch.float32}
    loss.backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    assert {p.grad.dtype for p in head.parameters()} == {torch.float32}
    exact = total(head.loss_by_feat(*head(maps), GTS, METAS))
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_initial_points_are_those_of_the_first_reppoints():
    """This holds if the foreground branch adds nothing to the features."""
    head = build()
    torch.nn.init.zeros_(head.foreground_embedding.norm.weight)
    torch.nn.init.zeros_(head.foreground_embedding.norm.bias)
    first = RepPointsHead(
        num_classes=CLASSES,
        in_channels=16,
        feat_channels=16,
        point_feat_channels=16,
        stacked_convs=3,
        norm_cfg=dict(type='GN', num_groups=4),
    )
    shared = {k: v for k, v in head.state_dict().items() if k in first.state_dict()}
    shared = {k: v for k, v in shared.items() if v.shape == first.state_dict()[k].shape}
    missing = first.load_state_dict(shared, strict=False).missing_keys
    assert set(missing) == {
        'moment_transfer',
        'reppoints_cls_conv.weight',
        'reppoints_pts_refine_conv.weight',
    }
    maps = features(96, 128)
    torch.nn.init.normal_(head.reppoints_pts_init_out.weight)
    first.reppoints_pts_init_out.load_state_dict(head.reppoints_pts_init_out.state_dict())
    for found, expected in zip(head(maps)[1], first.train()(maps)[1]):
        assert expected.std() > 1e-3
        torch.testing.assert_close(found, expected)


def test_points_learn_little_from_what_they_gather():
    head, x = build(), torch.randn(1, 16, 6, 8)
    init = torch.randn(1, 18, 6, 8, requires_grad=True)
    wide = torch.cat([x, torch.randn(1, 6, 6, 8)], dim=1)

    def gradient(mul: float) -> Tensor:
        head.gradient_mul = mul
        return torch.autograd.grad(head._gather(head.reppoints_cls_conv, wide, init).sum(), init)[
            0
        ]

    torch.testing.assert_close(gradient(0.1), 0.1 * gradient(1.0))
    corner = F.conv2d(F.pad(wide, (1, 1, 1, 1)), head.reppoints_cls_conv.weight)
    regular = head.dcn_base_offset.float().expand(1, -1, 6, 8)  # a plain convolution's points
    torch.testing.assert_close(head._gather(head.reppoints_cls_conv, wide, regular), corner)


@torch.no_grad()
def test_norm_behind_the_deformable_convolutions() -> None:
    """With a norm, outputs do not depend on the scale of the convolutions; without, they do."""
    x = torch.randn(1, 16, 6, 8)
    for norm_cfg, is_same in ((dict(type='GN', num_groups=4), True), (None, False)):
        head = build(point_norm_cfg=norm_cfg)
        head.reppoints_cls_out.reset_parameters()
        before = head.forward_single(x)
        for conv in (head.reppoints_cls_conv, head.reppoints_pts_refine_conv):
            torch.nn.init.normal_(conv.weight, std=1.0)
        first = head.forward_single(x)
        for conv in (head.reppoints_cls_conv, head.reppoints_pts_refine_conv):
            conv.weight.mul_(100)
        scaled = head.forward_single(x)
        assert not torch.allclose(first[0], before[0])
        assert torch.allclose(first[0], scaled[0], rtol=1e-3, atol=1e-3) == is_same
        assert torch.allclose(first[2], scaled[2], rtol=1e-3, atol=1e-3) == is_same
