# SPDX-License-Identifier: Apache-2.0
"""Composed bias tables, kept from call to call while nobody trains them."""

from typing import NamedTuple

import torch
from torch import Tensor

from mmfocal.ops import cpu

from .geometry import FocalBias, FocalGeometry, compute_dtype, merged_bias


class _Composition(NamedTuple):
    """What was composed, and copies of the tables it was composed of."""

    tables: FocalBias
    merged: Tensor


def _is_equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


class BiasCache:
    """The composition of one layer's tables, on CPUs where autograd does not follow it.

    The tables' values are compared in every call, which takes a fiftieth of composing them:
    PyTorch counts neither what fused optimizers write nor what is written to ``table.data``. A GPU
    would have to be waited for. Copies and pickles are empty.
    """

    def __init__(self) -> None:
        self._kept: _Composition | None = None

    def __reduce__(self) -> tuple:
        return BiasCache, ()

    def __call__(self, bias: FocalBias, geometry: FocalGeometry) -> FocalBias:
        """The tables with their composition, or without where it cannot be kept.

        All calls must be of one geometry, but for its shift.
        """
        tables = bias.tables
        if cpu.records_gradients(tables) or cpu.refusals(tables):
            return bias
        kept = self._kept  # once: another thread may replace it
        if kept is None or not all(map(_is_equal, kept.tables.tables, tables)):
            kept = self._kept = self._compose(bias, geometry)
        return bias._replace(merged=kept.merged)

    @staticmethod
    def _compose(bias: FocalBias, geometry: FocalGeometry) -> _Composition:
        """Of copies, since another thread may write to the tables meanwhile."""
        with torch.inference_mode(False), torch.no_grad():  # training must be able to save it
            tables = bias.map(torch.clone)
            merged = merged_bias(tables.to(compute_dtype(bias.own.dtype)), geometry)
        return _Composition(tables, merged)
