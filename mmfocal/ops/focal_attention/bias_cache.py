# SPDX-License-Identifier: Apache-2.0
"""Composed bias tables, kept from call to call while nobody trains them."""

from typing import NamedTuple

import torch
from torch import Tensor

from mmfocal.ops import cpu

from .geometry import FocalBias, FocalGeometry, compute_dtype, merged_bias


def _identity(x: Tensor) -> tuple:
    """Where a table lies, how often it was written, and on which stream it is read."""
    stream = torch.cuda.current_stream(x.device) if x.is_cuda else None
    return x.data_ptr(), x.shape, x.stride(), x.dtype, x.device, x._version, stream


class _Composition(NamedTuple):
    """What was composed of which tables, and aliases of these: they keep their memory taken."""

    identities: list[tuple]
    aliases: list[Tensor]
    merged: Tensor


def _can_be_kept(tables: list[Tensor]) -> bool:
    """Not what autograd follows, nor what a graph records (compiled, traced, of CUDA).

    Nor of tensors that are not what they seem, such as fake ones, or whose writes are not counted:
    of inference tensors and of memory that processes share.
    """
    return not (
        cpu.eager_refusals(tables)
        or cpu.records_gradients(tables)
        or any(x.is_inference() or (not x.is_cuda and x.is_shared()) for x in tables)
        or (tables[0].is_cuda and torch.cuda.is_current_stream_capturing())
    )


class BiasCache:
    """The composition of one layer's tables, in evaluation.

    Writes are noticed as far as PyTorch counts them. It does not count those to ``table.data`` or
    through NumPy: call ``clear`` after them. Copies and pickles are empty.
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
        identities = [_identity(x) for x in tables]  # first: others may write meanwhile
        if kept is None or kept.identities != identities:
            with torch.inference_mode(False), torch.no_grad():  # training must be able to save it
                aliases = [x.detach() for x in tables]
                merged = merged_bias(bias.to(compute_dtype(bias.own.dtype)), geometry)
            kept = self._kept = _Composition(identities, aliases, merged)
        return bias._replace(merged=kept.merged)
