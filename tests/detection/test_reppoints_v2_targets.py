# SPDX-License-Identifier: Apache-2.0
"""Corner and foreground targets against slow loops that follow their definition literally."""

import math

import pytest
import torch
from torch import Tensor

from mmfocal.detection import CornerAssigner
from mmfocal.detection.reppoints_v2_targets import foreground_weights

BOXES = torch.tensor(
    [
        [3.0, 5.0, 161.0, 170.0],
        [20.5, 11.0, 90.0, 140.0],
        [22.0, 12.0, 256.0, 192.0],  # its corner shares the nearest point with the box before
        [40.0, 40.0, 40.4, 40.3],  # tiny
        [0.0, 0.0, 250.0, 161.0],  # almost as large as the image
    ]
)
LABELS = torch.tensor([1, 0, 1, 2, 1])
LEVELS = {8: (24, 32), 32: (6, 8), 128: (2, 2), 256: (1, 1)}  # rows and columns by stride


def grid() -> tuple[Tensor, list[int]]:
    points = [
        (x * stride, y * stride, stride, stride)
        for stride, (rows, columns) in LEVELS.items()
        for y in range(rows)
        for x in range(columns)
    ]
    sizes = [rows * columns for rows, columns in LEVELS.values()]
    return torch.tensor(points, dtype=torch.float), sizes


def corner_radius(width: float, height: float, iou: float = 0.7) -> float:
    """Largest shift of the corners in the worst of three directions that keeps the overlap."""

    def overlap_after(shift: float) -> float:
        w, h, r = width, height, shift
        one_in_one_out = (w - r) * (h - r) / (2 * w * h - (w - r) * (h - r))
        both_in = (w - 2 * r) * (h - 2 * r) / (w * h)
        both_out = w * h / ((w + 2 * r) * (h + 2 * r))
        return min(one_in_one_out, both_in, both_out)

    low, high = 0.0, min(width, height) / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if overlap_after(middle) >= iou else (low, middle)
    return low


def slow_corners(points: Tensor, sizes: list[int], boxes: Tensor) -> tuple[Tensor, Tensor]:
    heat, offsets = torch.zeros(len(points), 2), torch.zeros(len(points), 4)
    owners: dict[tuple[int, int], float] = {}
    for x1, y1, x2, y2 in boxes.tolist():
        radius = corner_radius(x2 - x1, y2 - y1)
        sigma = (2 * radius + 1) / 6
        for corner, (cx, cy) in enumerate([(x1, y1), (x2, y2)]):
            start = 0
            for size in sizes:
                distances = {}
                for i in range(start, start + size):
                    x, y = points[i, :2].tolist()
                    distances[i] = distance = math.hypot(x - cx, y - cy)
                    if distance < radius:
                        bump = math.exp(-(distance**2) / (2 * sigma**2))
                        heat[i, corner] = max(heat[i, corner].item(), bump)
                nearest = min(distances, key=distances.get)
                if distances[nearest] < owners.get((nearest, corner), math.inf):
                    owners[nearest, corner] = distances[nearest]
                    x, y, stride, _ = points[nearest].tolist()
                    offsets[nearest, 2 * corner] = (cx - x) / stride
                    offsets[nearest, 2 * corner + 1] = (cy - y) / stride
                start += size
    for nearest, corner in owners:
        heat[nearest, corner] = 1
    return heat, offsets


@pytest.mark.parametrize('boxes', [BOXES, BOXES[3:4], BOXES[:0]], ids=['several', 'tiny', 'none'])
def test_corners(boxes):
    points, sizes = grid()
    heat, offsets = CornerAssigner(min_overlap=0.7).assign(points, sizes, boxes)
    expected_heat, expected_offsets = slow_corners(points, sizes, boxes)
    torch.testing.assert_close(heat, expected_heat)
    torch.testing.assert_close(offsets, expected_offsets)
    # every box on every level, minus nearest points that boxes share
    assert (heat == 1).any(0).tolist() == [len(boxes) > 0] * 2
    if len(boxes) > 1:
        assert ((heat > 0) & (heat < 1)).sum() > 10  # there are Gaussians at all


def test_of_two_corners_with_one_nearest_point_the_closer_gives_the_offset():
    points, sizes = grid()
    boxes = torch.tensor([[23.0, 10.0, 60.0, 60.0], [25.0, 9.0, 60.0, 60.0]])
    for order in ([0, 1], [1, 0]):
        heat, offsets = CornerAssigner().assign(points, sizes, boxes[order])
        nearest = 1 * 32 + 3  # second row, fourth column of stride 8: (24, 8)
        assert heat[nearest, 0] == 1
        torch.testing.assert_close(offsets[nearest, :2], torch.tensor([1 / 8, 1 / 8]))


def slow_foreground(boxes: Tensor, labels: Tensor, classes: int, size: tuple[int, int]) -> Tensor:
    weights = torch.zeros(classes, *size)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes.tolist()]
    for i in sorted(range(len(boxes)), key=lambda i: -areas[i]):  # small ones paint over large
        x1, y1, x2, y2 = boxes[i].tolist()
        for y in range(int(y1 / 8), min(int(y2 / 8) + 1, size[0])):
            for x in range(int(x1 / 8), min(int(x2 / 8) + 1, size[1])):
                weights[labels[i], y, x] = 1 / max(areas[i], 1.0)
    return weights


@pytest.mark.parametrize('count', [0, 1, 4, 5])
def test_foreground(count):
    boxes, labels = BOXES[:count], LABELS[:count]
    found = foreground_weights(boxes, labels, 3, (24, 32), 8)
    torch.testing.assert_close(found, slow_foreground(boxes, labels, 3, (24, 32)))
    assert found.gt(0).sum() >= count
    if count == 5:
        assert len(found[1].unique()) == 4  # three boxes of one class overlap
        assert found.max() == 1  # the tiny box is not worth more than a pixel
