# SPDX-License-Identifier: Apache-2.0
"""Tokens of a map and of its pooled coarse maps for CPUs, written directly into one tensor.

The layers create a padded map, coarse maps and a concatenated copy, and autograd saves two of
these. Here autograd saves the tokens only, which the next linear layer saves as well.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfocal.ops.block import padded_size
from mmfocal.ops.focal_attention.geometry import FocalGeometry, split_maps, trim


def _cells(fine: Tensor, cell: int, grid: Sequence[int]) -> Tensor:
    """View a padded map by pooled cells, trimmed evenly: ``(B, rows, cell, cols, cell, C)``."""
    rows, cols = grid
    return trim(fine, cell, grid).unflatten(2, (cols, cell)).unflatten(1, (rows, cell))


def pad_and_roll(fine: Tensor, height: int, width: int, shift: int) -> None:
    """Fill a map with zeros outside its first rows and columns, then roll it by ``-shift``."""
    fine[:, height:] = 0
    fine[:, :height, width:] = 0
    if shift:
        fine.copy_(torch.roll(fine, (-shift, -shift), (1, 2)))


def fill_tokens(
    tokens: Tensor,
    fine: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    geometry: FocalGeometry,
) -> None:
    """Write the coarse tokens, pooled from the padded map, which is a view of the fine tokens.

    Args:
        tokens: ``(B, T, C)``; the coarse part is written.
        fine: View of the first tokens as a map, ``(B, H, W, C)``.
        weights: Pooling weights ``(1, cell * cell)`` per coarse level.
        biases: Pooling biases ``(1)`` per coarse level.
        geometry: The key set of a window.
    """
    _, *coarse = split_maps(tokens, geometry.map_sizes(*fine.shape[1:3]))
    for level, (target, weight, bias) in enumerate(zip(coarse, weights, biases)):
        cell = geometry.cell_size(level)
        by_row = weight.view(cell, 1, 1, cell) @ _cells(fine, cell, target.shape[1:3])
        torch.add(by_row.sum(dim=2).squeeze(-2), bias, out=target)


class _PoolTokens(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, geometry: FocalGeometry, shift: int, *parameters: Tensor
    ) -> Tensor:
        batch, height, width, dim = x.shape
        half = len(parameters) // 2
        map_size = padded_size(x, geometry.window_size)
        tokens = x.new_empty(batch, geometry.num_tokens(*map_size), dim)
        fine = split_maps(tokens, [map_size])[0]
        fine[:, :height, :width] = x
        pad_and_roll(fine, height, width, shift)
        fill_tokens(tokens, fine, parameters[:half], parameters[half:], geometry)
        ctx.save_for_backward(tokens, *parameters[:half])
        ctx.geometry, ctx.shift, ctx.size, ctx.map_size = geometry, shift, x.shape[1:3], map_size
        return tokens

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_tokens: Tensor) -> tuple[Tensor | None, ...]:
        tokens, *weights = ctx.saved_tensors
        sizes = ctx.geometry.map_sizes(*ctx.map_size)
        fine = split_maps(tokens, sizes[:1])[0]
        d_map, *d_coarse = split_maps(d_tokens, sizes)
        d_map = d_map.clone()
        d_weights, d_biases = [], []
        for level, (weight, d_level) in enumerate(zip(weights, d_coarse)):
            cell = ctx.geometry.cell_size(level)
            cells, d_cells = (_cells(x, cell, d_level.shape[1:3]) for x in (fine, d_map))
            # older releases of PyTorch require a common dtype
            parts = (weight.view(cell, 1, cell, 1), d_level[:, :, None, :, None])
            d_cells.addcmul_(*(part.to(d_cells.dtype) for part in parts))
            products = cells @ d_level[:, :, None, :, :, None]  # (B, rows, cell, cols, cell, 1)
            d_weights.append(products.sum((0, 1, 3)).view(weight.shape))
            d_biases.append(d_level.sum().view(1))
        if ctx.shift:
            d_map = torch.roll(d_map, (ctx.shift, ctx.shift), (1, 2))
        d_x = d_map[:, : ctx.size[0], : ctx.size[1]]
        return d_x, None, None, *d_weights, *d_biases


def pool_tokens(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    geometry: FocalGeometry,
    shift: int,
) -> Tensor:
    """Pad, roll and pool a map.

    Args:
        x: Normalized map ``(B, H, W, C)`` of any size.
        weights: Pooling weights ``(1, cell * cell)`` per coarse level.
        biases: Pooling biases ``(1)`` per coarse level.
        geometry: The key set of a window.
        shift: Number of tokens by which the padded map is rolled up and to the left.

    Returns:
        ``(B, T, C)``: the tokens of the map, padded to multiples of the window, then of each
        coarse map.
    """
    return _PoolTokens.apply(x, geometry, shift, *weights, *biases)
