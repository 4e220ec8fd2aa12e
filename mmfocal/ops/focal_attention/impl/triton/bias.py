# SPDX-License-Identifier: Apache-2.0
"""Combined bias and gradients of its tables, each by one kernel.

The result equals ``focal_attention.bias.combined_bias``, with padding columns between the regions
as in ``columns``. Operators take the tables in the order of ``bias_tables``. Compilers do not see
the kernels: the index is no argument, because Dynamo supports one constant tensor of a function,
and blocks have different ones.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmfocal import compat
from mmfocal.ops.focal_attention import bias as plain
from mmfocal.ops.focal_attention.bias import FocalBias
from mmfocal.ops.focal_attention.geometry import FocalGeometry

from .columns import num_columns, to_columns
from .operators import MAX_FOCAL_LEVEL, Operator, ceil_div, sizes_of, start


def _make_index(geometry: FocalGeometry) -> Tensor:
    """Return the index of the combined bias as one tensor of 32-bit integers.

    It consists of four parts. *Elements* are those of a head's combined bias.

    - First and second entry of each element, ``(w*w*columns,)`` each; the number of entries means
      no entry.
    - Start of each entry's elements in the last part, ``(entries + 1,)``.
    - Elements of all entries, ascending per entry.
    """
    index = plain.bias_index(geometry, torch.device('cpu'))
    none = sum(plain.entry_counts(geometry))
    second = torch.full_like(index.entry, none)
    if index.doubled is not None:
        second[:, index.doubled.key] = index.doubled.entry
    first, second = (to_columns(x, geometry, none).flatten() for x in (index.entry, second))
    entries = torch.cat([first, second])
    counts = torch.bincount(entries, minlength=none + 1)[:none]
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    elements = entries.argsort(stable=True)[: int(starts[-1])] % first.numel()
    return torch.cat([first, second, starts, elements]).int()


_geometry = cache(FocalGeometry)
_INDICES: dict[tuple[Any, ...], Tensor] = {}


def _index(device: torch.device, sizes: list[int]) -> Tensor:
    """Return the index, cached because copies to a GPU synchronize."""
    key = (device, *sizes)
    if key not in _INDICES:
        with compat.without_dispatch_modes():
            _INDICES[key] = _make_index(_geometry(*sizes)).to(device)
    return _INDICES[key]


def _five(tables: list[Tensor], sizes: list[int]) -> list[Tensor]:
    """Return window, neighbor and three coarse tables; the first one replaces missing ones."""
    tables = [table.contiguous() for table in tables]
    neighbors = tables[1] if sizes[1] else tables[0]
    coarse = tables[2 if sizes[1] else 1 :]
    return [tables[0], neighbors, *coarse, *[tables[0]] * (MAX_FOCAL_LEVEL - 1 - len(coarse))]


def _counts(sizes: list[int]) -> list[int]:
    """Return the number of entries of the same five tables; 0 for missing ones."""
    counts = plain.entry_counts(_geometry(*sizes))
    return [*counts, *[0] * (MAX_FOCAL_LEVEL + 1 - len(counts))]


def _combined(tables: list[Tensor], sizes: list[int]) -> Tensor:
    columns = num_columns(_geometry(*sizes))
    return tables[0].new_empty(tables[0].shape[1], sizes[0] ** 2, columns)


def _combine(tables: list[Tensor], sizes: list[int]) -> Tensor:
    from .kernels.bias import BLOCK, combine_kernel

    combined = _combined(tables, sizes)
    num_heads, num_elements = combined.shape[0], combined.shape[1] * combined.shape[2]
    start(
        combine_kernel, (ceil_div(num_elements, BLOCK), num_heads), combined,
        *_five(tables, sizes), _index(combined.device, sizes), combined,
        num_heads, *_counts(sizes), num_elements, BLOCK=BLOCK,
    )  # fmt: skip
    return combined


def _gradient(
    d_combined: Tensor, combined: Tensor, tables: list[Tensor], sizes: list[int]
) -> Tensor:
    return combined.new_empty(sum(table.numel() for table in tables))


def _combine_backward(
    d_combined: Tensor, combined: Tensor, tables: list[Tensor], sizes: list[int]
) -> Tensor:
    from .kernels.bias import BLOCK_ELEMENTS, BLOCK_ENTRIES, combine_backward_kernel

    gradient, counts = _gradient(d_combined, combined, tables, sizes), _counts(sizes)
    index = _index(combined.device, sizes)
    num_heads, num_elements = combined.shape[0], combined.shape[1] * combined.shape[2]
    start(
        combine_backward_kernel, (ceil_div(sum(counts), BLOCK_ENTRIES), num_heads), combined,
        d_combined.contiguous(), combined, *_five(tables, sizes), index, gradient,
        num_heads, *counts, num_elements, BLOCK=BLOCK_ENTRIES, BLOCK_E=BLOCK_ELEMENTS,
    )  # fmt: skip
    return gradient


combine = Operator(
    'combined_columns(Tensor[] tables, int[] sizes) -> Tensor',
    _combine,
    _combined,
    is_visible=False,
)
combine_backward = Operator(
    'combined_columns_backward(Tensor d_combined, Tensor combined, Tensor[] tables, int[] sizes)'
    ' -> Tensor',
    _combine_backward,
    _gradient,
    is_visible=False,
)


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sizes: list[int], *tables: Tensor) -> Tensor:
        combined = combine(list(tables), sizes)
        ctx.sizes = sizes
        ctx.save_for_backward(combined, *tables)
        return combined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_combined: Tensor) -> tuple[Tensor | None, ...]:
        combined, *tables = ctx.saved_tensors
        gradient = combine_backward(d_combined, combined, tables, ctx.sizes)
        parts = gradient.split([table.numel() for table in tables])
        return None, *(part.view(table.shape) for part, table in zip(parts, tables))


def combined_columns(bias: FocalBias, geometry: FocalGeometry) -> Tensor:
    """Compute the combined bias over the keys of all regions.

    Returns:
        ``(h, w*w, columns)`` with ``NO_KEY`` between the regions; ``(h, w*w, K)`` from
        :func:`mmfocal.ops.focal_attention.bias.combined_bias` for a focal level over 4.
    """
    if geometry.focal_level > MAX_FOCAL_LEVEL:
        return plain.combined_bias(bias, geometry)
    return _Combine.apply(sizes_of(geometry), *plain.bias_tables(bias))
