# SPDX-License-Identifier: Apache-2.0
"""Composed bias tables, kept from call to call while nobody trains them."""

from typing import NamedTuple

import torch
from torch import Tensor

from mmfocal.ops import cpu

from .geometry import FocalBias, FocalGeometry, compute_dtype, merged_bias


class _Composition(NamedTuple):
    """What was composed of which tables; these share memory with the layer's, which keeps it."""

    tables: list[Tensor]
    versions: list[int]
    merged: Tensor

    def is_of(self, tables: list[Tensor]) -> bool:
        """Whether the tables are these, and nothing was written to them since."""
        return self.versions == [x._version for x in tables] and all(
            (old.data_ptr(), old.dtype) == (new.data_ptr(), new.dtype)
            for old, new in zip(self.tables, tables)
        )


def _can_be_kept(tables: list[Tensor]) -> bool:
    """Not what autograd follows, nor what a graph records (compiled, traced, of CUDA).

    Nor of tensors that are not what they seem, such as fake ones, or whose writes are not counted.
    """
    return not (
        cpu.eager_refusals(tables)
        or cpu.records_gradients(tables)
        or any(x.is_inference() for x in tables)
        or (tables[0].is_cuda and torch.cuda.is_current_stream_capturing())
    )


class BiasCache:
    """The composition of one layer's tables, in evaluation.

    Writes are noticed as far as PyTorch counts them. It does not count those to ``table.data``:
    call ``clear`` after them. Copies and pickles are empty.
    """

    def __init__(self) -> None:
        self._kept: _Composition | None = None

    def __reduce__(self) -> tuple:
        return BiasCache, ()

    def clear(self) -> None:
        """Forget the composition."""
        self._kept = None

    def __call__(self, bias: FocalBias, geometry: FocalGeometry) -> FocalBias:
        """The tables with their composition, or without where it cannot be kept.

        All calls must be of one geometry, but for its shift.
        """
        tables = bias.tables
        if not _can_be_kept(tables):
            return bias
        kept = self._kept  # once: another thread may replace it
        if kept is None or not kept.is_of(tables):
            with torch.inference_mode(False), torch.no_grad():  # training must be able to save it
                merged = merged_bias(bias.to(compute_dtype(bias.own.dtype)), geometry)
                aliases = [x.detach() for x in tables]
            kept = self._kept = _Composition(aliases, [x._version for x in tables], merged)
        return bias._replace(merged=kept.merged)
