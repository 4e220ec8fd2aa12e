# SPDX-License-Identifier: Apache-2.0
"""Kernels of the combined bias and of the gradients of its tables.

*Entries* are those of ``bias.BiasIndex``, numbered through all tables of a head; *elements* are
the ``w*w*columns`` elements of a head's combined bias. A missing table has no entries, and another
table is passed for it.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from mmfocal.ops.focal_attention import bias

from .. import operators
from .bundle import bundle

# Elements and entries per program, and elements of an entry that are summed at a time. The
# interpreter takes the same time for small blocks.
BLOCK = 8192 if operators.INTERPRETED else 512
BLOCK_ENTRIES, BLOCK_ELEMENTS = (8192, 64) if operators.INTERPRETED else (64, 16)
NO_KEY = tl.constexpr(bias.NO_KEY)
MAX_FOCAL_LEVEL = tl.constexpr(operators.MAX_FOCAL_LEVEL)
# These differ between stages, which share one kernel. `num_elements` is not listed: it is a
# multiple of 16, which lets masked loads and stores use vectors.
UNSPECIALIZED = [
    'num_heads', 'window_entries', 'neighbors_entries', 'coarse_0_entries', 'coarse_1_entries',
    'coarse_2_entries',
]  # fmt: skip


@bundle
class Tables(NamedTuple):
    """Pointers to the tables, see ``FocalBias`` for the layout of each, or numbers of entries."""

    window: tl.tensor
    neighbors: tl.tensor
    coarse: tuple


@triton.jit
def _count(entries):
    """Return the number of entries of all tables of a head."""
    count = entries.window + entries.neighbors
    for level in tl.static_range(MAX_FOCAL_LEVEL - 1):
        count += entries.coarse[level]
    return count


@triton.jit
def _entry_pointers(tables, entry, head, num_heads, entries):
    """Return pointers to entries of a head."""
    pointers = tables.window + entry * num_heads + head
    first = entries.window
    table = tables.neighbors + head * entries.neighbors
    pointers = tl.where(entry >= first, table + (entry - first), pointers)
    first += entries.neighbors
    for level in tl.static_range(MAX_FOCAL_LEVEL - 1):
        table = tables.coarse[level] + head * entries.coarse[level]
        pointers = tl.where(entry >= first, table + (entry - first), pointers)
        first += entries.coarse[level]
    return pointers


@triton.jit
def _gradient_pointers(ptr, entry, head, num_heads, entries):
    """Return the same for tables that follow each other in memory."""
    neighbors = ptr + num_heads * entries.window
    coarse_0 = neighbors + num_heads * entries.neighbors
    coarse_1 = coarse_0 + num_heads * entries.coarse[0]
    coarse_2 = coarse_1 + num_heads * entries.coarse[1]
    tables = Tables(ptr, neighbors, (coarse_0, coarse_1, coarse_2))
    return _entry_pointers(tables, entry, head, num_heads, entries)


@triton.jit
def _combine(tables, index_ptr, combined_ptr, num_heads, entries, size, BLOCK: tl.constexpr):
    """Compute a block of a head's ``size`` elements; see ``combine_kernel``."""
    element, head = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    exists, num_entries = element < size, _count(entries)
    first = tl.load(index_ptr + element, mask=exists, other=num_entries)
    second = tl.load(index_ptr + size + element, mask=exists, other=num_entries)
    pointers = _entry_pointers(tables, first, head, num_heads, entries)
    value = tl.load(pointers, mask=first < num_entries, other=NO_KEY)
    pointers = _entry_pointers(tables, second, head, num_heads, entries)
    is_double = second < num_entries
    other = tl.load(pointers, mask=is_double, other=0.0)
    both = tl.maximum(value, other) + tl.log(1.0 + tl.exp(-tl.abs(value - other)))
    combined = tl.where(is_double, both, value)
    tl.store(combined_ptr + head * size + element, combined, mask=exists)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def combine_kernel(
    # tables; index; combined bias, written: (h, w*w*columns)
    window_ptr,
    neighbors_ptr,
    coarse_0_ptr,
    coarse_1_ptr,
    coarse_2_ptr,
    index_ptr,
    combined_ptr,
    # numbers
    num_heads,
    window_entries,
    neighbors_entries,
    coarse_0_entries,
    coarse_1_entries,
    coarse_2_entries,
    num_elements,
    # constants
    BLOCK: tl.constexpr,
):
    """Compute the combined bias. Programs: (blocks of elements, h)."""
    coarse = (coarse_0_entries, coarse_1_entries, coarse_2_entries)
    _combine(
        Tables(window_ptr, neighbors_ptr, (coarse_0_ptr, coarse_1_ptr, coarse_2_ptr)),
        index_ptr,
        combined_ptr,
        num_heads,
        Tables(window_entries, neighbors_entries, coarse),
        num_elements,
        BLOCK,
    )


@bundle
class Gradient(NamedTuple):
    """Combined bias and its gradient, ``(h, size)``; gradients of all tables, written."""

    d_combined_ptr: tl.tensor
    combined_ptr: tl.tensor
    d_tables_ptr: tl.tensor
    size: tl.tensor


@triton.jit
def _combine_backward(
    gradient, tables, index_ptr, num_heads, entries, BLOCK: tl.constexpr, BLOCK_E: tl.constexpr
):
    """Compute the gradients of a block of entries; see ``combine_backward_kernel``."""
    entry, head = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    num_entries, size = _count(entries), gradient.size
    exists = entry < num_entries
    pointers = _entry_pointers(tables, entry, head, num_heads, entries)
    value = tl.load(pointers, mask=exists, other=0.0)
    # elements of entry n: from starts[n] to starts[n + 1]
    starts_ptr = index_ptr + 2 * size
    start = tl.load(starts_ptr + entry, mask=exists, other=0)
    end = tl.load(starts_ptr + entry + 1, mask=exists, other=0)
    elements_ptr = starts_ptr + num_entries + 1
    d_entry = tl.zeros((BLOCK,), gradient.combined_ptr.dtype.element_ty)
    for step in range(0, tl.max(end - start, 0), BLOCK_E):
        turn = start[:, None] + step + tl.arange(0, BLOCK_E)[None, :]
        mask = turn < end[:, None]
        # the exponential is 0 where there is none
        element = head * size + tl.load(elements_ptr + turn, mask=mask, other=0)
        combined = tl.load(gradient.combined_ptr + element, mask=mask, other=float('inf'))
        d_combined = tl.load(gradient.d_combined_ptr + element, mask=mask, other=0.0)
        d_entry += tl.sum(d_combined * tl.exp(value[:, None] - combined), 1)
    pointers = _gradient_pointers(gradient.d_tables_ptr, entry, head, num_heads, entries)
    tl.store(pointers, d_entry, mask=exists)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def combine_backward_kernel(
    # gradient of the combined bias; combined bias; tables; index; gradients of the tables, written
    d_combined_ptr,
    combined_ptr,
    window_ptr,
    neighbors_ptr,
    coarse_0_ptr,
    coarse_1_ptr,
    coarse_2_ptr,
    index_ptr,
    d_tables_ptr,
    # numbers
    num_heads,
    window_entries,
    neighbors_entries,
    coarse_0_entries,
    coarse_1_entries,
    coarse_2_entries,
    num_elements,
    # constants
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Compute the gradients of the tables in a fixed order. Programs: (blocks of entries, h)."""
    coarse = (coarse_0_entries, coarse_1_entries, coarse_2_entries)
    _combine_backward(
        Gradient(d_combined_ptr, combined_ptr, d_tables_ptr, num_elements),
        Tables(window_ptr, neighbors_ptr, (coarse_0_ptr, coarse_1_ptr, coarse_2_ptr)),
        index_ptr,
        num_heads,
        Tables(window_entries, neighbors_entries, coarse),
        BLOCK,
        BLOCK_E,
    )
