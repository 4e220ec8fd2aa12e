# SPDX-License-Identifier: Apache-2.0
"""Inputs of focal attention and their validation."""

from typing import NamedTuple

from torch import Tensor

from .bias import FocalBias
from .geometry import FocalGeometry


class FocalInputs(NamedTuple):
    """Inputs of one call of focal attention; see ``geometry`` for the shape legend.

    Attributes:
        qkv: ``(B, T, 3C)``, queries, keys and values of all tokens: the map, row-major, then each
            coarse map. Queries of coarse tokens are not used.
        map_size: ``(H, W)``, multiples of the window.
        bias: Relative position bias tables.
        geometry: The key set of a window.
        scale: Factor on the query-key products, usually ``d ** -0.5``.
        shift: Number of tokens that the map is rolled by, 0 to ``w - 1``; window keys across the
            seam are masked.
        dropout_p: Dropout on the attention weights; 0 in evaluation.
    """

    qkv: Tensor
    map_size: tuple[int, int]
    bias: FocalBias
    geometry: FocalGeometry
    scale: float
    shift: int = 0
    dropout_p: float = 0.0


def _expected_shapes(inputs: FocalInputs) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """Return every tensor with its expected shape."""
    geometry, bias = inputs.geometry, inputs.bias
    w, num_heads = geometry.window_size, bias.own.shape[1]
    batch, _, channels = inputs.qkv.shape
    num_tokens = geometry.num_tokens(*inputs.map_size)
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        'qkv': (inputs.qkv, (batch, num_tokens, channels)),
        'bias.own': (bias.own, ((2 * w - 1) ** 2, num_heads)),
    }
    if bias.neighbors is not None:
        neighbors = (1, num_heads, w * w, geometry.num_neighbors)
        expected['bias.neighbors'] = (bias.neighbors, neighbors)
    for level, (table, region) in enumerate(zip(bias.coarse, geometry.regions[1:])):
        shape = (num_heads, (w + region.size - 1) ** 2)
        expected[f'bias.coarse[{level}]'] = (table, shape)
    return expected


def check_inputs(inputs: FocalInputs) -> None:
    """Check the shape of every tensor against the geometry.

    Raises:
        ValueError: If a shape differs; names the first such tensor.
    """
    geometry, bias, (height, width) = inputs.geometry, inputs.bias, inputs.map_size
    w, num_heads, channels = geometry.window_size, bias.own.shape[1], inputs.qkv.shape[-1]
    if height % w or width % w or not height * width:
        raise ValueError(f'map_size must be multiples of the window {w}, got {height}x{width}')
    if channels % (3 * num_heads):
        raise ValueError(f'qkv has {channels} channels, not a multiple of 3 x {num_heads} heads')
    if not 0 <= inputs.shift < w:
        raise ValueError(f'shift must lie between 0 and window_size - 1, got {inputs.shift}')
    if (bias.neighbors is None) != (geometry.expand_size == 0):
        raise ValueError('bias.neighbors must be given exactly if expand_size > 0')
    levels = len(geometry.coarse_levels)
    if len(bias.coarse) != levels:
        raise ValueError(
            f'focal_level {levels + 1} needs {levels} coarse tables, got {len(bias.coarse)}'
        )
    for name, (tensor, shape) in _expected_shapes(inputs).items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f'{name} must have shape {shape}, got {tuple(tensor.shape)}')
