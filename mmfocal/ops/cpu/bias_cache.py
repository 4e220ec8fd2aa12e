# SPDX-License-Identifier: Apache-2.0
"""Cache of the combined bias of layers that are not being trained."""

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mmfocal.ops.focal_attention.bias import (
    FocalBias,
    bias_tables,
    check_tables,
    combined_bias,
    map_tables,
)
from mmfocal.ops.focal_attention.geometry import FocalGeometry, compute_dtype


class _Combination(NamedTuple):
    """Combined bias and copies of the tables that it was computed from."""

    bias: FocalBias
    combined: Tensor


_KEPT: 'WeakKeyDictionary[nn.Module, _Combination]' = WeakKeyDictionary()


def _is_equal(a: FocalBias, b: FocalBias) -> bool:
    tables = bias_tables(a), bias_tables(b)
    is_alike = len(tables[0]) == len(tables[1])
    return is_alike and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(*tables))


def _combine(bias: FocalBias, geometry: FocalGeometry) -> _Combination:
    """Combine copies of the tables, because another thread may change the tables meanwhile."""
    check_tables(bias, geometry)
    with torch.inference_mode(False), torch.no_grad():  # autograd may save the result
        bias = map_tables(torch.clone, bias)
        dtype = compute_dtype(bias.window.dtype)
        combined = combined_bias(map_tables(lambda table: table.to(dtype), bias), geometry)
    return _Combination(bias, combined)


def kept_bias(layer: nn.Module, bias: FocalBias, geometry: FocalGeometry) -> Tensor:
    """Return the combined bias ``(h, w*w, K)`` of a layer on a CPU, without gradient.

    The values of the tables are compared in every call, which takes a fiftieth of the time of
    combining them. Version counters do not suffice: fused optimizers and writes to ``table.data``
    do not increment them. Copies and pickles of a layer start with an empty cache.

    Args:
        layer: Key of the cache entry, which lives as long as the layer. Its geometry is constant.
        bias: Tables of the layer.
        geometry: The key set of a window.

    Raises:
        ValueError: If a table has another shape than the geometry needs.
    """
    kept = _KEPT.get(layer)  # read once: another thread may replace it
    if kept is None or not _is_equal(kept.bias, bias):
        kept = _KEPT[layer] = _combine(bias, geometry)
    return kept.combined
