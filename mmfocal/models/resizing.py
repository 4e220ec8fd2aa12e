# SPDX-License-Identifier: Apache-2.0
"""Resize parameters whose shape depends on the geometry, see ``docs/checkpoints.md``."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocal.ops.focal_attention import FocalBias, FocalGeometry
from mmfocal.ops.focal_attention.bias import combined_bias


def _interpolate(grid: Tensor, size: tuple[int, int], mode: str = 'bilinear') -> Tensor:
    """``(C, rows, cols)`` -> ``(C, *size)``."""
    return F.interpolate(grid[None].float(), size, mode=mode, align_corners=False)[0]


def resize_coarse(table: Tensor, size: int) -> Tensor:
    """Resize a coarse bias table per head as a grid: ``(h, S*S)`` -> ``(h, size*size)``."""
    side = math.isqrt(table.shape[1])
    return _interpolate(table.unflatten(1, (side, side)), (size, size)).flatten(1)


def resize_window(table: Tensor, window: int) -> Tensor:
    """Resize a table of window keys: ``((2w-1)^2, h)`` -> ``((2*window-1)^2, h)``."""
    # choice: bilinear as for the coarse tables, because the paper does not specify it; Swin's code
    # is bicubic
    return resize_coarse(table.t(), 2 * window - 1).t()


def resize_pool(weight: Tensor, cell: int) -> Tensor:
    """Resize pooling weights to ``cell x cell`` positions, keeping their sum.

    Args:
        weight: ``(1, p*p)`` of ``pool_method='fc'``, or ``(C, 1, p, p)`` of ``'conv'``.
        cell: New side, in tokens.

    Returns:
        The same layout with ``cell`` in place of ``p``.
    """
    grid = weight if weight.ndim == 4 else weight.unflatten(1, (math.isqrt(weight.shape[1]),) * 2)
    old = grid.reshape(-1, *grid.shape[-2:])
    new = _interpolate(old, (cell, cell)) * (old.shape[-1] / cell) ** 2
    # the remaining difference is spread evenly, because a factor diverges for sums near zero
    new = new + (old.sum((1, 2), keepdim=True) - new.sum((1, 2), keepdim=True)) / cell**2
    return new[:, None] if weight.ndim == 4 else new.flatten(1)


def resize_pos_embed(embed: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize ``(1, N, C)`` of a square token grid bicubically to ``grid``."""
    side = math.isqrt(embed.shape[1])
    if side**2 != embed.shape[1]:
        raise ValueError(
            f'absolute_pos_embed has {embed.shape[1]} tokens; expected a square number'
        )
    old = embed[0].t().unflatten(1, (side, side))
    return _interpolate(old, grid, 'bicubic').flatten(1).t()[None]


def _stretch(old: int, new: int) -> Tensor:
    """Return the linear interpolation matrix from ``old`` to ``new`` places: ``(new, old)``."""
    return F.interpolate(torch.eye(old)[None], new, mode='linear', align_corners=False)[0].t()


def resize_neighbors(table: Tensor, old: FocalGeometry, new: FocalGeometry) -> Tensor | None:
    """Resize a neighbor table to another window or expand size.

    The bias of each token is placed in the square of side ``R = w + 2e`` around the window; a
    token that is attended twice has its combined bias. Each of the eight parts of that square
    (four edges, four corners) is interpolated separately, and so are the queries. A token that is
    attended twice in the new geometry gets the result minus ``log 2`` in both entries, so that
    its combined bias equals the result.

    Args:
        table: ``(1, h, w*w, 4(w^2-(w-e)^2))`` of ``old``.
        old: Geometry with expand.
        new: Geometry with expand.

    Returns:
        The table of ``new``; None if the edges of ``old`` have gaps (``2e > w``).
    """
    w, e = old.window_size, old.expand_size
    if 2 * e > w:
        return None
    zeros = table.new_zeros((2 * w - 1) ** 2, table.shape[1], dtype=torch.float)
    square = combined_bias(FocalBias(zeros, table.float()), FocalGeometry(w, e))
    square = square.unflatten(2, (w + 2 * e,) * 2).unflatten(1, (w, w))
    edge = _stretch(e, new.expand_size)
    queries = _stretch(w, new.window_size)
    keys = torch.block_diag(edge, queries, edge)
    for axis, matrix in enumerate((queries, queries, keys, keys), start=1):
        square = torch.tensordot(square, matrix, ([axis], [1])).movedim(-1, axis)
    places = torch.tensor(_places(new))
    times = torch.bincount(places)[places]
    return (square.flatten(3).flatten(1, 2)[..., places] - times.log())[None]


def _places(geometry: FocalGeometry) -> list[int]:
    """Return the place of each neighbor key in the square of side ``w + 2e``, in table order."""
    w, e = geometry.window_size, geometry.expand_size
    return [
        (position // w + move.rows + e) * geometry.regions[0].side + position % w + move.cols + e
        for move in geometry.moves
        for position in move.kept
    ]
