# SPDX-License-Identifier: Apache-2.0
"""Tokens of a map and its coarse maps by one kernel: pad, roll, pool, concatenate and cast."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmfocal import compat
from mmfocal.ops.focal_attention.geometry import FocalGeometry, compute_dtype

from .operators import (
    MAX_EXTENT,
    MAX_FOCAL_LEVEL,
    MAX_WINDOW_SIZE,
    Operator,
    ceil_div,
    sizes_of,
    start,
)

# Number of programs of the backward kernel: several per multiprocessor of a large GPU. The number,
# and with it the order of summation, does not depend on the GPU.
STRIPS = 2048
BLOCK_C = 32


def _windows(height: int, width: int, sizes: list[int]) -> tuple[int, int]:
    """Return the number of windows vertically and horizontally; the last ones may be padded."""
    return ceil_div(height, sizes[0]), ceil_div(width, sizes[0])


def _num_tokens(x: Tensor, sizes: list[int]) -> int:
    window_size, _, _, focal_level = sizes
    nh, nw = _windows(x.shape[1], x.shape[2], sizes)
    return nh * nw * (window_size**2 + sum(4**level for level in range(focal_level - 1)))


def _areas(sizes: list[int]) -> list[int]:
    """Return the number of weights of each coarse level."""
    window_size, _, _, focal_level = sizes
    return [(window_size >> level) ** 2 for level in range(focal_level - 1)]


def _three(parameters: list[Tensor], other: Tensor) -> list[Tensor]:
    """Return one value per possible coarse level, ``other`` for missing ones."""
    parameters = [parameter.contiguous() for parameter in parameters]
    return [*parameters, *[other] * (MAX_FOCAL_LEVEL - 1 - len(parameters))]


def _constants(dtype: torch.dtype, sizes: list[int]) -> dict[str, bool | int]:
    """Return the constants of both kernels for a dtype of the map."""
    window_size, _, _, focal_level = sizes
    return {
        'IS_DOUBLE': dtype == torch.float64,
        'WINDOW_SIZE': window_size,
        'FOCAL_LEVEL': focal_level,
        'BLOCK_P': 1 << (window_size**2 - 1).bit_length(),
        'BLOCK_C': BLOCK_C,
    }


def _tokens(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    sizes: list[int],
    shift: int,
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty(x.shape[0], _num_tokens(x, sizes), x.shape[3], dtype=dtype)


def _pool(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    sizes: list[int],
    shift: int,
    dtype: torch.dtype,
) -> Tensor:
    from .kernels.tokens import pool_kernel

    x, tokens = x.contiguous(), _tokens(x, weights, biases, sizes, shift, dtype)
    if tokens.numel() == 0:
        return tokens
    batch, height, width, channels = x.shape
    nh, nw = _windows(height, width, sizes)
    start(
        pool_kernel, (batch * nh * nw * ceil_div(channels, BLOCK_C),), x,
        x, tokens, *_three(weights, x), *_three(biases, x),
        height, width, nh, nw, shift, tokens.shape[1], channels,
        **_constants(x.dtype, sizes),
    )  # fmt: skip
    return tokens


def _gradients(
    d_tokens: Tensor,
    tokens: Tensor,
    weights: list[Tensor],
    sizes: list[int],
    shift: int,
    height: int,
    width: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    batch, _, channels = tokens.shape
    areas = _areas(sizes)
    num_sums = sum(areas) + len(areas)  # and a bias each
    sums = tokens.new_empty(num_sums, dtype=compute_dtype(dtype))
    return tokens.new_empty(batch, height, width, channels, dtype=dtype), sums


def _pool_backward(
    d_tokens: Tensor,
    tokens: Tensor,
    weights: list[Tensor],
    sizes: list[int],
    shift: int,
    height: int,
    width: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    from .kernels.tokens import pool_backward_kernel

    d_x, sums = _gradients(d_tokens, tokens, weights, sizes, shift, height, width, dtype)
    if tokens.numel() == 0:
        return d_x, sums.zero_()
    batch, num_tokens, channels = tokens.shape
    nh, nw = _windows(height, width, sizes)
    items = batch * nh * nw * ceil_div(channels, BLOCK_C)
    per_strip = ceil_div(items, STRIPS)
    strips = ceil_div(items, per_strip)
    by_strip = sums.new_empty(strips, sums.numel())
    start(
        pool_backward_kernel, (strips,), tokens,
        d_tokens.contiguous(), tokens, d_x, *_three(weights, tokens), by_strip,
        height, width, nh, nw, shift, num_tokens, channels, items, per_strip,
        NUM_SUMS=sums.numel(), **_constants(dtype, sizes),
    )  # fmt: skip
    return d_x, by_strip.sum(0) if weights else sums


pool = Operator(
    'pool_tokens(Tensor x, Tensor[] weights, Tensor[] biases, int[] sizes, SymInt shift,'
    ' ScalarType dtype) -> Tensor',
    _pool,
    _tokens,
)
pool_backward = Operator(
    'pool_tokens_backward(Tensor d_tokens, Tensor tokens, Tensor[] weights, int[] sizes,'
    ' SymInt shift, SymInt height, SymInt width, ScalarType dtype) -> (Tensor, Tensor)',
    _pool_backward,
    _gradients,
)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sizes: list[int], shift: int, dtype: torch.dtype, *parameters: Tensor
    ) -> Tensor:
        half = len(parameters) // 2
        weights, biases = parameters[:half], parameters[half:]
        ctx.sizes, ctx.shift, ctx.map_size, ctx.dtype = sizes, shift, x.shape[1:3], x.dtype
        tokens = pool(x, list(weights), list(biases), sizes, shift, dtype)
        ctx.save_for_backward(tokens, *weights)  # the next linear layer saves the tokens anyway
        return tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_tokens: Tensor) -> tuple[Tensor | None, ...]:
        tokens, *weights = ctx.saved_tensors
        d_x, sums = pool_backward(
            d_tokens, tokens, weights, ctx.sizes, ctx.shift, *ctx.map_size, ctx.dtype
        )
        d_weights, d_biases, first = [], [], 0
        for weight, area in zip(weights, _areas(ctx.sizes)):
            values = sums[first : first + area + 1].to(weight.dtype)
            d_weights.append(values[:area].view(weight.shape))
            d_biases.append(values[area:])
            first += area + 1
        return d_x, None, None, None, *d_weights, *d_biases


def unsupported_reasons(x: Tensor, geometry: FocalGeometry) -> list[str]:
    """Return the reasons why a map or its geometry is unsupported."""
    reasons, focal_level, w = [], geometry.focal_level, geometry.window_size
    if focal_level > MAX_FOCAL_LEVEL:
        reasons.append(f'focal levels over {MAX_FOCAL_LEVEL} are not supported, got {focal_level}')
    if w > MAX_WINDOW_SIZE:
        reasons.append(f'windows over {MAX_WINDOW_SIZE} are not supported, got {w}')
    if _num_tokens(x, sizes_of(geometry)) * x.shape[3] >= MAX_EXTENT:
        reasons.append(f'the tokens of an image must have less than {MAX_EXTENT} elements')
    return reasons


def tokens_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the tokens of a map: that of autocast, or of ``x`` without autocast."""
    device_type = x.device.type
    is_autocast = compat.is_autocast_enabled(device_type) and x.dtype != torch.float64
    return compat.autocast_dtype(device_type) if is_autocast else x.dtype


def pool_tokens(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    geometry: FocalGeometry,
    shift: int,
) -> Tensor:
    """Compute the tokens of a map for attention; coarse tokens are pooled by a linear layer.

    The map is padded with zeros on the bottom and right to whole windows and rolled by ``-shift``.
    A coarse token is the weighted sum of a cell plus a bias, accumulated in at least float32. A
    map whose size is not a multiple of the cell is trimmed at its border, as evenly as possible.

    Args:
        x: ``(B, H, W, C)``.
        weights: ``(1, p*p)`` per coarse level, ``p = geometry.cell_size(level)``.
        biases: ``(1,)`` per coarse level.
        geometry: Window size and levels.
        shift: 0 to ``w - 1``.

    Returns:
        ``(B, T, C)`` in :func:`tokens_dtype`: the tokens of the padded map, row-major, then of
        each coarse level. The gradient of ``x`` has the dtype of ``x``.

    Raises:
        ValueError: See :func:`unsupported_reasons`.
    """
    reasons = unsupported_reasons(x, geometry)
    if reasons:
        raise ValueError('; '.join(reasons))
    return _Pool.apply(x, sizes_of(geometry), shift, tokens_dtype(x), *weights, *biases)
