# SPDX-License-Identifier: Apache-2.0
"""Targets of the two verification branches of RepPointsV2: corners and foreground.

Shapes: P points of all levels, of which a level has L; G boxes ``(x1, y1, x2, y2)`` in pixels. A
point is ``(x, y, stride_w, stride_h)``.
"""

from collections.abc import Sequence

import torch
from mmdet.models.utils import gaussian_radius
from mmdet.registry import TASK_UTILS
from torch import Tensor


def foreground_weights(
    boxes: Tensor, labels: Tensor, num_classes: int, size: Sequence[int], stride: int
) -> Tensor:
    """Weight the cells that boxes cover, so that each box has the same total weight.

    Args:
        boxes: ``(G, 4)``.
        labels: ``(G,)``.
        num_classes: Number of classes C.
        size: Height H and width W of the map in cells.
        stride: Side of a cell in pixels.

    Returns:
        ``(C, H, W)``: in each cell the reciprocal area of the smallest box of the class that
        covers it, 0 where there is none.
    """
    left, top, right, bottom = (boxes / stride).floor().unbind(1)
    y, x = (torch.arange(length, device=boxes.device)[:, None] for length in size)
    rows = (top <= y) & (y <= bottom)  # (H, G)
    columns = (left <= x) & (x <= right)  # (W, G)
    covered = rows.T[:, :, None] & columns.T[:, None]
    # boxes of less than a pixel would dominate
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=1)
    weights = covered / area[:, None, None]  # (G, H, W)
    channels = labels[:, None, None].expand_as(weights)
    return weights.new_zeros(num_classes, *size).scatter_reduce(0, channels, weights, 'amax')


@TASK_UTILS.register_module()
class CornerAssigner:
    """Assign corner heat to points: 1 for the point nearest to a corner, a Gaussian around it.

    Every box is assigned on every level. Top left and bottom right corners are separate.

    Args:
        min_overlap: Boxes with both corners within the Gaussian's radius overlap the true box by
            at least this IoU.
    """

    def __init__(self, min_overlap: float = 0.7) -> None:
        self.min_overlap = min_overlap

    def assign(
        self, points: Tensor, num_level_points: Sequence[int], boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the targets of one image.

        Args:
            points: ``(P, 4)``, level by level.
            num_level_points: Number of points of each level.
            boxes: ``(G, 4)``.

        Returns:
            Heat ``(P, 2)`` for (top left, bottom right), 1 where a point is the nearest to a
            corner. Offsets ``(P, 4)`` from these points to their corners in strides: top left
            (x, y), bottom right (x, y); 0 at other points. If a point is the nearest to several
            corners, the closest corner counts.
        """
        radius = self._radius(boxes)
        targets = [
            level_corner_targets(level, corners, radius)
            for corners in (boxes[:, :2], boxes[:, 2:])
            for level in points.split(list(num_level_points))
        ]
        heat, offsets = (torch.cat(parts) for parts in zip(*targets))
        return torch.stack(heat.chunk(2), dim=1), torch.cat(offsets.chunk(2), dim=1)

    def _radius(self, boxes: Tensor) -> Tensor:
        """Return CornerNet's radius ``(G,)`` in pixels."""
        sizes = (boxes[:, 2:] - boxes[:, :2]).tolist()
        return boxes.new_tensor([gaussian_radius((h, w), self.min_overlap) for w, h in sizes])


def level_corner_targets(points: Tensor, corners: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the targets of one level for one kind of corner.

    Args:
        points: ``(L, 4)``.
        corners: ``(G, 2)``.
        radius: ``(G,)``.

    Returns:
        Heat ``(L,)`` and offsets ``(L, 2)`` as described in :class:`CornerAssigner`.
    """
    heat, offsets = points.new_zeros(len(points)), points.new_zeros(len(points), 2)
    if len(corners) == 0:
        return heat, offsets
    xy, stride = points.split(2, dim=1)
    distance = (xy[:, None] - corners).norm(dim=2)  # (L, G)
    sigma = (2 * radius + 1) / 6
    gaussian = torch.exp(-distance.square() / (2 * sigma.square())) * (distance < radius)
    heat = gaussian.amax(dim=1)
    nearest = distance.argmin(dim=0)  # (G,)
    heat[nearest] = 1
    own = torch.full_like(distance, torch.inf).scatter(0, nearest[None], distance.amin(0)[None])
    closest = own.argmin(dim=1)[nearest]  # the corner that each nearest point is assigned to
    offsets[nearest] = (corners[closest] - xy[nearest]) / stride[nearest]
    return heat, offsets
