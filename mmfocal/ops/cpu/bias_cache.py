# SPDX-License-Identifier: Apache-2.0
"""Combined bias of layers, kept from call to call while nobody trains them."""

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mmfocal.ops.focal_attention.bias import FocalBias, bias_tables, combined_bias, map_tables
from mmfocal.ops.focal_attention.geometry import FocalGeometry, compute_dtype


class _Combination(NamedTuple):
    """Combined bias, and copies of the tables it was made of."""

    bias: FocalBias
    combined: Tensor


_KEPT: 'WeakKeyDictionary[nn.Module, _Combination]' = WeakKeyDictionary()


def _is_equal(a: FocalBias, b: FocalBias) -> bool:
    tables = bias_tables(a), bias_tables(b)
    is_alike = len(tables[0]) == len(tables[1])
    return is_alike and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(*tables))


def _combine(bias: FocalBias, geometry: FocalGeometry) -> _Combination:
    """Of copies, since another thread may write to the tables meanwhile."""
    with torch.inference_mode(False), torch.no_grad():  # training must be able to save it
        bias = map_tables(torch.clone, bias)
        dtype = compute_dtype(bias.own.dtype)
        combined = combined_bias(map_tables(lambda table: table.to(dtype), bias), geometry)
    return _Combination(bias, combined)


def kept_bias(layer: nn.Module, bias: FocalBias, geometry: FocalGeometry) -> Tensor:
    """Combined bias ``(h, w*w, K)`` of a layer on a CPU, without gradient.

    The tables' values are compared in every call, which takes a fiftieth of combining them:
    PyTorch counts neither what fused optimizers write nor what is written to ``table.data``.
    Copies and pickles of a layer start without.

    Args:
        layer: Whose bias is kept, as long as it lives; always of one geometry.
        bias: Its tables.
        geometry: The key set of a window.
    """
    kept = _KEPT.get(layer)  # once: another thread may replace it
    if kept is None or not _is_equal(kept.bias, bias):
        kept = _KEPT[layer] = _combine(bias, geometry)
    return kept.combined
