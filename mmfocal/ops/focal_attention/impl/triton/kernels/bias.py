# SPDX-License-Identifier: Apache-2.0
"""Kernels of the combined bias and of the gradients of its tables.

*Entries* are those of ``bias.BiasIndex``, numbered through all tables of a head; *places* are the
``w*w*columns`` elements of a head's combined bias. Another table is passed for a missing one.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from mmfocal.ops.focal_attention import bias

from ..operators import INTERPRETED
from .bundle import bundle

# Places and entries per program, and places of an entry that are summed at a time. The interpreter
# takes the same time for small blocks.
BLOCK = 8192 if INTERPRETED else 512
BLOCK_ENTRIES, BLOCK_PLACES = (8192, 64) if INTERPRETED else (64, 16)
NO_KEY = tl.constexpr(bias.NO_KEY)
# Sizes differ between stages, which share one kernel.
SIZES = ['num_heads', 'window', 'num_neighbors', 'focal_window', 'num_entries', 'num_places']


@bundle
class Tables(NamedTuple):
    """Pointers to the tables; see ``FocalBias`` for the layout of each."""

    window: tl.tensor
    neighbors: tl.tensor
    coarse: tuple


@bundle
class Sizes(NamedTuple):
    """Sizes of the tables."""

    num_heads: tl.tensor
    window: tl.tensor
    num_neighbors: tl.tensor
    focal_window: tl.tensor


@triton.jit
def _entry_pointers(tables, entry, head, sizes, COARSE_LEVELS: tl.constexpr):
    """Return pointers to entries of a head."""
    pointers = tables.window + entry * sizes.num_heads + head
    first = (2 * sizes.window - 1) * (2 * sizes.window - 1)
    size = sizes.window * sizes.window * sizes.num_neighbors
    table = tables.neighbors + head * size
    pointers = tl.where(entry >= first, table + (entry - first), pointers)
    for level in tl.static_range(COARSE_LEVELS):
        first += size
        side = sizes.window + sizes.focal_window + (1 << level) - 2  # w + R - 1
        size = side * side
        table = tables.coarse[level] + head * size
        pointers = tl.where(entry >= first, table + (entry - first), pointers)
    return pointers


@triton.jit(do_not_specialize=SIZES)
def combine_kernel(
    # tables; index arrays (w*w*columns); combined bias, written: (h, w*w*columns)
    own_ptr,
    neighbors_ptr,
    coarse_0_ptr,
    coarse_1_ptr,
    coarse_2_ptr,
    first_ptr,
    second_ptr,
    combined_ptr,
    # sizes
    num_heads,
    window,
    num_neighbors,
    focal_window,
    num_entries,
    num_places,
    # constants
    COARSE_LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the combined bias. Programs: (blocks of places, h)."""
    tables = Tables(own_ptr, neighbors_ptr, (coarse_0_ptr, coarse_1_ptr, coarse_2_ptr))
    sizes = Sizes(num_heads, window, num_neighbors, focal_window)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    exists = place < num_places
    first = tl.load(first_ptr + place, mask=exists, other=num_entries)
    second = tl.load(second_ptr + place, mask=exists, other=num_entries)
    pointers = _entry_pointers(tables, first, head, sizes, COARSE_LEVELS)
    value = tl.load(pointers, mask=first < num_entries, other=NO_KEY)
    pointers = _entry_pointers(tables, second, head, sizes, COARSE_LEVELS)
    is_double = second < num_entries
    other = tl.load(pointers, mask=is_double, other=0.0)
    both = tl.maximum(value, other) + tl.log(1.0 + tl.exp(-tl.abs(value - other)))
    combined = tl.where(is_double, both, value)
    tl.store(combined_ptr + head * num_places + place, combined, mask=exists)


@triton.jit(do_not_specialize=SIZES)
def combine_backward_kernel(
    # gradient and combined bias (h, w*w*columns); tables; their gradients, written
    d_combined_ptr,
    combined_ptr,
    own_ptr,
    neighbors_ptr,
    coarse_0_ptr,
    coarse_1_ptr,
    coarse_2_ptr,
    d_own_ptr,
    d_neighbors_ptr,
    d_coarse_0_ptr,
    d_coarse_1_ptr,
    d_coarse_2_ptr,
    # places of entry n: from starts[n] to starts[n + 1]
    starts_ptr,
    places_ptr,
    # sizes
    num_heads,
    window,
    num_neighbors,
    focal_window,
    num_entries,
    num_places,
    # constants
    COARSE_LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Compute the gradients of the tables in a fixed order. Programs: (blocks of entries, h)."""
    tables = Tables(own_ptr, neighbors_ptr, (coarse_0_ptr, coarse_1_ptr, coarse_2_ptr))
    sizes = Sizes(num_heads, window, num_neighbors, focal_window)
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    exists = entry < num_entries
    pointers = _entry_pointers(tables, entry, head, sizes, COARSE_LEVELS)
    value = tl.load(pointers, mask=exists, other=0.0)
    start = tl.load(starts_ptr + entry, mask=exists, other=0)
    end = tl.load(starts_ptr + entry + 1, mask=exists, other=0)
    gradient = tl.zeros((BLOCK,), combined_ptr.dtype.element_ty)
    for step in range(0, tl.max(end - start, 0), BLOCK_P):
        turn = start[:, None] + step + tl.arange(0, BLOCK_P)[None, :]
        mask = turn < end[:, None]
        place = head * num_places + tl.load(places_ptr + turn, mask=mask, other=0)
        combined = tl.load(combined_ptr + place, mask=mask, other=float('inf'))  # exp is 0
        d_combined = tl.load(d_combined_ptr + place, mask=mask, other=0.0)
        gradient += tl.sum(d_combined * tl.exp(value[:, None] - combined), 1)
    coarse = (d_coarse_0_ptr, d_coarse_1_ptr, d_coarse_2_ptr)
    d_tables = Tables(d_own_ptr, d_neighbors_ptr, coarse)
    pointers = _entry_pointers(d_tables, entry, head, sizes, COARSE_LEVELS)
    tl.store(pointers, gradient, mask=exists)
