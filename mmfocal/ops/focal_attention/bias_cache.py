# SPDX-License-Identifier: Apache-2.0
"""Composed bias tables, kept from call to call while nobody trains them."""

import torch
from torch import Tensor

from mmfocal.ops import cpu

from .geometry import FocalBias, FocalGeometry, compute_dtype, merged_bias


def _state(tables: list[Tensor]) -> list[tuple]:
    """Equal only if nothing was written to the tables, as far as PyTorch counts writes."""
    return [(x.data_ptr(), x._version, x.dtype, x.device) for x in tables]


class BiasCache:
    """The composition of one layer's tables.

    Writes behind PyTorch's back, to ``table.data``, are not noticed: call ``clear`` after them.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the composition."""
        self._of: list[tuple] | None = None
        self._merged: Tensor | None = None

    def __call__(self, bias: FocalBias, geometry: FocalGeometry) -> FocalBias:
        """The tables with their composition, or without where it cannot be kept.

        It cannot while autograd follows the tables, while a graph is recorded (compiled, exported,
        traced), and for tensors that are not what they seem, such as fake or functional ones.
        """
        tables = bias.tables
        if cpu.eager_refusals(tables) or cpu.records_gradients(tables):
            return bias
        if any(x.is_inference() for x in tables):  # their writes are not counted
            return bias
        state = _state(tables)
        if self._of != state:
            with torch.inference_mode(False), torch.no_grad():  # training must be able to save it
                self._merged = merged_bias(bias.to(compute_dtype(bias.own.dtype)), geometry)
            self._of = state
        return bias._replace(merged=self._merged)
