# SPDX-License-Identifier: Apache-2.0
"""Combined bias and gradients of its tables, each by one kernel.

The result equals ``focal_attention.bias.combined_bias``, with padding columns between the regions
as in ``columns``. Operators accept no objects: ``sizes`` are the arguments of ``FocalGeometry``,
and tables are in the order of ``bias_tables``.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmfocal import compat
from mmfocal.ops.focal_attention import bias as plain
from mmfocal.ops.focal_attention.bias import FocalBias
from mmfocal.ops.focal_attention.geometry import FocalGeometry

from .columns import num_columns, to_columns
from .operators import MAX_COARSE_LEVELS, Operator, ceil_div, start


class Indices(NamedTuple):
    """Indices between entries of the tables and places of the combined bias; 32-bit integers.

    Attributes:
        first, second: Entries of each place, ``(w*w*columns,)``; ``num_entries`` means no entry.
        starts: Start of the places of each entry in ``places``: ``(entries + 1,)``.
        places: Places of all entries, ascending per entry.
        num_neighbors: Number of neighbor keys of a window.
    """

    first: Tensor
    second: Tensor
    starts: Tensor
    places: Tensor
    num_neighbors: int

    @property
    def num_entries(self) -> int:
        return self.starts.numel() - 1


def _make_indices(geometry: FocalGeometry, device: torch.device) -> Indices:
    index = plain.bias_index(geometry, torch.device('cpu'))
    side, tables = geometry.window_size, [(2 * geometry.window_size - 1) ** 2]
    tables += [side**2 * geometry.num_neighbors]
    tables += [(side + region.side - 1) ** 2 for region in geometry.regions[1:]]
    none = sum(tables)
    second = torch.full_like(index.entry, none)
    if index.doubled is not None:
        second[:, index.doubled.key] = index.doubled.entry
    first, second = (to_columns(x, geometry, none).flatten() for x in (index.entry, second))
    flat = torch.cat([first, second])
    counts = torch.bincount(flat, minlength=none + 1)[:none]
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    places = flat.argsort(stable=True)[: int(starts[-1])] % first.numel()
    first, second, starts, places = (
        array.to(device, torch.int32) for array in (first, second, starts, places)
    )
    return Indices(first, second, starts, places, geometry.num_neighbors)


_geometry = cache(FocalGeometry)
_INDICES: dict[tuple[Any, ...], Indices] = {}


def _indices(sizes: list[int], device: torch.device) -> Indices:
    """Return the indices, cached because copies to a GPU synchronize."""
    key = (*sizes, device)
    if key not in _INDICES:
        with compat.without_dispatch_modes():
            _INDICES[key] = _make_indices(_geometry(*sizes), device)
    return _INDICES[key]


def _shape(tables: list[Tensor], sizes: list[int]) -> tuple[int, int, int]:
    """Return ``(h, w*w, columns)``."""
    return tables[0].shape[1], sizes[0] ** 2, num_columns(_geometry(*sizes))


def _five(tables: list[Tensor], sizes: list[int]) -> list[Tensor]:
    """Return window, neighbor and three coarse tables; the first one replaces missing ones."""
    neighbors = tables[1] if sizes[1] else tables[0]
    coarse = tables[2 if sizes[1] else 1 :]
    return [tables[0], neighbors, *coarse, *[tables[0]] * (MAX_COARSE_LEVELS - len(coarse))]


def _combined(tables: list[Tensor], sizes: list[int]) -> Tensor:
    return tables[0].new_empty(_shape(tables, sizes))


def _combine(tables: list[Tensor], sizes: list[int]) -> Tensor:
    from .kernels.bias import BLOCK, combine_kernel

    combined = _combined(tables, sizes)
    index = _indices(sizes, combined.device)
    num_heads, num_places = combined.shape[0], index.first.numel()
    start(
        combine_kernel, (ceil_div(num_places, BLOCK), num_heads), combined,
        *_five([table.contiguous() for table in tables], sizes),
        index.first, index.second, combined,
        num_heads, sizes[0], index.num_neighbors, sizes[2], index.num_entries, num_places,
        COARSE_LEVELS=sizes[3] - 1, BLOCK=BLOCK,
    )  # fmt: skip
    return combined


def _gradients(
    d_combined: Tensor, combined: Tensor, tables: list[Tensor], sizes: list[int]
) -> list[Tensor]:
    return [table.new_empty(table.shape) for table in tables]


def _combine_backward(
    d_combined: Tensor, combined: Tensor, tables: list[Tensor], sizes: list[int]
) -> list[Tensor]:
    from .kernels.bias import BLOCK_ENTRIES, BLOCK_PLACES, combine_backward_kernel

    gradients = _gradients(d_combined, combined, tables, sizes)
    index = _indices(sizes, combined.device)
    num_heads, num_entries = combined.shape[0], index.num_entries
    start(
        combine_backward_kernel, (ceil_div(num_entries, BLOCK_ENTRIES), num_heads), combined,
        d_combined.contiguous(), combined,
        *_five([table.contiguous() for table in tables], sizes), *_five(gradients, sizes),
        index.starts, index.places,
        num_heads, sizes[0], index.num_neighbors, sizes[2], num_entries, index.first.numel(),
        COARSE_LEVELS=sizes[3] - 1, BLOCK=BLOCK_ENTRIES, BLOCK_P=BLOCK_PLACES,
    )  # fmt: skip
    return gradients


combine = Operator(
    'combined_columns(Tensor[] tables, int[] sizes) -> Tensor',
    _combine,
    _combined,
    is_visible=False,
)
combine_backward = Operator(
    'combined_columns_backward(Tensor d_combined, Tensor combined, Tensor[] tables, int[] sizes)'
    ' -> Tensor[]',
    _combine_backward,
    _gradients,
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
        return None, *combine_backward(d_combined, combined, tables, ctx.sizes)


def combined_columns(bias: FocalBias, geometry: FocalGeometry) -> Tensor:
    """Compute the combined bias over the keys of all regions.

    Returns:
        ``(h, w*w, columns)`` with ``NO_KEY`` between the regions; ``(h, w*w, K)`` from
        :func:`mmfocal.ops.focal_attention.bias.combined_bias` for more than three coarse levels.
    """
    if len(bias.coarse) > MAX_COARSE_LEVELS:
        return plain.combined_bias(bias, geometry)
    sizes = [
        geometry.window_size,
        geometry.expand_size,
        geometry.focal_window,
        geometry.focal_level,
    ]
    return _Combine.apply(sizes, *plain.bias_tables(bias))
