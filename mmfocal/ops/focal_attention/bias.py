# SPDX-License-Identifier: Apache-2.0
"""Relative position bias: the tables of a layer and the combined bias over all keys.

See ``geometry`` for the shape legend and for the exact combination of two entries of one key.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocal import compat

from .geometry import FocalGeometry

# Bias of a place in the fine region without a key (2e > w). It is finite, because softmax of
# infinite values can be NaN, and far below MASKED, so that its softmax is exactly zero.
NO_KEY = -1e30


class FocalBias(NamedTuple):
    """Relative position bias tables of one attention layer, in the released checkpoints' layout.

    Attributes:
        window: ``((2w-1)^2, h)``, by relative position within the window.
        neighbors: ``(1, h, w*w, 4(w^2-(w-e)^2))``, one value per query and key; None if e = 0.
        coarse: ``(h, (w+R-1)^2)`` per coarse level, by relative position in the region.
    """

    window: Tensor
    neighbors: Tensor | None = None
    coarse: tuple[Tensor, ...] = ()


def bias_tables(bias: FocalBias) -> list[Tensor]:
    """Return all existing tables, in the order of :func:`flat_tables`."""
    return [bias.window, *([] if bias.neighbors is None else [bias.neighbors]), *bias.coarse]


def map_tables(change: Callable[[Tensor], Tensor], bias: FocalBias) -> FocalBias:
    """Apply a function to every existing table."""
    neighbors = None if bias.neighbors is None else change(bias.neighbors)
    return FocalBias(change(bias.window), neighbors, tuple(change(table) for table in bias.coarse))


def entry_counts(geometry: FocalGeometry) -> list[int]:
    """Return the number of entries of a head: window keys, neighbor keys, each coarse level."""
    w = geometry.window_size
    coarse = [(w + region.side - 1) ** 2 for region in geometry.regions[1:]]
    return [(2 * w - 1) ** 2, w * w * geometry.num_neighbors, *coarse]


def _expected_shapes(
    bias: FocalBias, geometry: FocalGeometry
) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """Return every table with its expected shape."""
    w, num_heads = geometry.window_size, bias.window.shape[1]
    window, _, *coarse = entry_counts(geometry)
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        'bias.window': (bias.window, (window, num_heads))
    }
    if bias.neighbors is not None:
        neighbors = (1, num_heads, w * w, geometry.num_neighbors)
        expected['bias.neighbors'] = (bias.neighbors, neighbors)
    for level, (table, entries) in enumerate(zip(bias.coarse, coarse)):
        expected[f'bias.coarse[{level}]'] = (table, (num_heads, entries))
    return expected


def check_tables(bias: FocalBias, geometry: FocalGeometry) -> None:
    """Check the number and the shapes of the tables.

    Raises:
        ValueError: If their number or a shape differs; names the first such table.
    """
    # Two conditions, because the Dynamo of PyTorch 2.6 compares results of comparisons wrongly.
    is_missing = geometry.expand_size > 0 and bias.neighbors is None
    is_unused = geometry.expand_size == 0 and bias.neighbors is not None
    if is_missing or is_unused:
        raise ValueError('bias.neighbors must be given if and only if expand_size > 0')
    levels = len(geometry.coarse_levels)
    if len(bias.coarse) != levels:
        raise ValueError(
            f'focal_level {levels + 1} needs {levels} coarse tables, got {len(bias.coarse)}'
        )
    for name, (table, shape) in _expected_shapes(bias, geometry).items():
        if tuple(table.shape) != shape:
            raise ValueError(f'{name} must have shape {shape}, got {tuple(table.shape)}')


def relative_index(window_size: int, side: int, device: torch.device) -> Tensor:
    """Return the index into a relative position table for each query and key of a square.

    The table has side ``S = w + R - 1``; the row is ``qr - kr + R - 1``, the column analogous.

    Returns:
        Long ``(w*w, R*R)``, indices into the ``S * S`` entries.
    """
    query, key = (torch.arange(n, device=device) for n in (window_size, side))
    offset = query[:, None] - key + side - 1  # (w, R)
    index = offset[:, None, :, None] * (window_size + side - 1) + offset[None, :, None, :]
    return index.reshape(window_size**2, side**2)


class DoubledKeys(NamedTuple):
    """Keys of the fine region that are attended twice.

    Attributes:
        key: Long ``(m,)``, ascending.
        entry: Second entry of each query and doubled key: long ``(w*w, m)``.
        row: Row of each key in the concatenation of all keys and the doubled keys: long ``(K,)``.
    """

    key: Tensor
    entry: Tensor
    row: Tensor


class BiasIndex(NamedTuple):
    """Indices of the bias of each query and key into a head's flat entries.

    Flat entries are those of the window keys, neighbor keys and each coarse level, and ``NO_KEY``.

    Attributes:
        entry: Long ``(w*w, K)``.
        doubled: Keys with a second entry, or None.
    """

    entry: Tensor
    doubled: DoubledKeys | None = None


def _fine_entries(
    geometry: FocalGeometry, none: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return both entries of the keys of the fine region, ``(w*w, R*R)`` each."""
    w = geometry.window_size
    keys = relative_index(w, w, device)
    if not geometry.expand_size:
        return keys, torch.full_like(keys, none)
    shape = (w * w, geometry.num_neighbors)
    neighbors = torch.arange(shape[0] * shape[1], device=device).view(shape) + (2 * w - 1) ** 2
    keys = torch.cat([keys, neighbors, neighbors.new_full((w * w, 1), none)], dim=1)
    first, second = (torch.tensor(source, device=device) for source in geometry.square_sources)
    return keys.index_select(1, first), keys.index_select(1, second)


def _doubled_keys(geometry: FocalGeometry, second: Tensor, num_keys: int) -> DoubledKeys | None:
    if not geometry.expand_size:
        return None
    no_key = geometry.window_size**2 + geometry.num_neighbors
    doubled = [key for key, source in enumerate(geometry.square_sources[1]) if source != no_key]
    if not doubled:
        return None
    row = list(range(num_keys))
    for i, key in enumerate(doubled):
        row[key] = num_keys + i
    keys = torch.tensor(doubled, device=second.device)
    return DoubledKeys(keys, second.index_select(1, keys), torch.tensor(row, device=second.device))


def _compute_index(geometry: FocalGeometry, device: torch.device) -> BiasIndex:
    w, counts = geometry.window_size, entry_counts(geometry)
    none = sum(counts)
    first, second = _fine_entries(geometry, none, device)
    parts, start = [first], sum(counts[:2])
    for region, count in zip(geometry.regions[1:], counts[2:]):
        parts.append(start + relative_index(w, region.side, device))
        start += count
    entry = torch.cat(parts, dim=1)
    return BiasIndex(entry, _doubled_keys(geometry, second, entry.shape[1]))


_INDICES: dict[tuple[FocalGeometry, torch.device], BiasIndex] = {}


def bias_index(geometry: FocalGeometry, device: torch.device) -> BiasIndex:
    """Return the index, cached in eager mode because copies to a GPU synchronize."""
    if not compat.is_plain_eager():  # function transforms and fake tensors are not cached
        return _compute_index(geometry, device)
    key = (geometry, device)
    if key not in _INDICES:
        with torch.inference_mode(False):  # an inference tensor cannot be saved for backward
            _INDICES[key] = _compute_index(geometry, device)
    return _INDICES[key]


def _by_entry(table: Tensor, num_heads: int) -> Tensor:
    """Return a table whose first dimension is heads as ``(entries, h)``.

    ``flatten`` gives the gradient the strides of the table. The strides of a transposed table with
    one head would differ, and distributed training would warn and copy.
    """
    return table.flatten().unflatten(0, (num_heads, -1)).t()


def flat_tables(bias: FocalBias) -> Tensor:
    """Return the entries of all tables and ``NO_KEY``, one per row: ``(entries, h)``."""
    num_heads = bias.window.shape[1]
    rows = [bias.window]
    if bias.neighbors is not None:
        rows.append(_by_entry(bias.neighbors, num_heads))
    rows += [_by_entry(table, num_heads) for table in bias.coarse]
    return torch.cat([*rows, bias.window.new_full((1, num_heads), NO_KEY)])


def combined_bias(bias: FocalBias, geometry: FocalGeometry) -> Tensor:
    """Combine all tables over the keys of all regions.

    Returns:
        ``(h, w*w, K)``, contiguous, differentiable in every table.
    """
    flat, index = flat_tables(bias), bias_index(geometry, bias.window.device)
    combined = F.embedding(index.entry.t(), flat)  # (K, w*w, h); backward sums rows fast
    if index.doubled is not None:
        key, entry, row = index.doubled
        twice = torch.logaddexp(combined.index_select(0, key), F.embedding(entry.t(), flat))
        # Inductor cannot compile index_copy here, so rows are selected instead.
        combined = torch.cat([combined, twice]).index_select(0, row)
    return combined.permute(2, 1, 0).contiguous()
