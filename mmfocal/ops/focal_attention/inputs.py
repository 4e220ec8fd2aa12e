# SPDX-License-Identifier: Apache-2.0
"""Inputs of focal attention and their validation."""

from typing import NamedTuple

from torch import Tensor

from .bias import FocalBias, check_tables
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


def check_inputs(inputs: FocalInputs) -> None:
    """Check the shape of every tensor against the geometry.

    Raises:
        ValueError: If a shape differs; names the first such tensor.
    """
    geometry, (height, width), qkv = inputs.geometry, inputs.map_size, inputs.qkv
    w, num_heads = geometry.window_size, inputs.bias.window.shape[1]
    batch, _, channels = qkv.shape
    if height % w or width % w or not height * width:
        raise ValueError(
            f'map_size must be positive multiples of the window {w}, got {height}x{width}'
        )
    if channels % (3 * num_heads):
        raise ValueError(f'qkv has {channels} channels, not a multiple of 3 x {num_heads} heads')
    if not 0 <= inputs.shift < w:
        raise ValueError(f'shift must lie between 0 and window_size - 1, got {inputs.shift}')
    shape = (batch, geometry.num_tokens(height, width), channels)
    if tuple(qkv.shape) != shape:
        raise ValueError(f'qkv must have shape {shape}, got {tuple(qkv.shape)}')
    check_tables(inputs.bias, geometry)
