# SPDX-License-Identifier: Apache-2.0
"""Which keys a window attends, where they lie, and what is added to their logits.

Shape legend, used throughout ``focal_attention``:

    B batch            H, W token map, multiples of w      C channels = h * d
    h heads            d channels of one head              w window side
    e expand size      L focal levels, the fine one too    f focal window (odd)
    nH, nW windows down and across, N = nH * nW            K keys of one window
    R = w + 2e         side of the fine region             F = f + 2^k - 1, of coarse region k

A window attends three groups of keys: its **own** ``w * w`` tokens; its **neighbours**, the
tokens that the window moved diagonally by ``e`` covers and the unmoved one does not (four moves);
and, for each coarse level ``k``, the ``F * F`` pooled cells around it. Neighbours wrap around the
map and are never masked; coarse cells outside their map are zero vectors with ``MASKED`` added to
the logit.

Moved windows overlap, so some neighbours are attended twice, each time with a bias of their own.
Since ``exp(s + a) + exp(s + b) = exp(s + logaddexp(a, b))`` the two merge exactly, and own and
neighbour keys together become one ``R x R`` square: this is what ``merged_bias`` and ``key_index``
describe.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mmfocal.ops import cpu

# Added to the logit of a key that must not count (the released code's value; not -inf).
MASKED = -100.0
# Bias of a place in the R x R square that holds no key. Finite, so that logaddexp of two such
# places has a gradient; far below MASKED, so that its softmax is exactly zero.
NO_KEY = -1e30


class FocalBias(NamedTuple):
    """Relative position bias tables of one attention layer, in the released checkpoints' layout.

    Attributes:
        own: ``((2w-1)^2, h)``, by relative position within the window.
        neighbors: ``(1, h, w*w, 4(w^2-(w-e)^2))``, one value per query and key; None if e = 0.
        coarse: per coarse level ``(h, (w+F-1)^2)``, by relative position in the ``F x F`` region.
        merged: ``merged_bias`` of these tables if it is known, ``(h, w*w, K)``; they get no
            gradient then. The reference back end composes for itself.
    """

    own: Tensor
    neighbors: Tensor | None = None
    coarse: tuple[Tensor, ...] = ()
    merged: Tensor | None = None

    @property
    def tables(self) -> list[Tensor]:
        """All tables that exist."""
        return [self.own, *([] if self.neighbors is None else [self.neighbors]), *self.coarse]

    def map(self, change: Callable[[Tensor], Tensor]) -> 'FocalBias':
        """Change every tensor that exists."""
        neighbors = None if self.neighbors is None else change(self.neighbors)
        merged = None if self.merged is None else change(self.merged)
        return FocalBias(change(self.own), neighbors, tuple(map(change, self.coarse)), merged)

    def to(self, dtype: torch.dtype) -> 'FocalBias':
        """The tables in another dtype."""
        return self.map(lambda table: table.to(dtype))


class Move(NamedTuple):
    """A neighbour group: the window moved by rows and columns, and which tokens of it count."""

    rows: int
    cols: int
    kept: tuple[int, ...]


def _neighbor_moves(w: int, e: int) -> tuple[Move, ...]:
    """The four neighbour groups; a moved window keeps what the unmoved one does not hold."""

    def kept(dy: int, dx: int) -> tuple[int, ...]:
        return tuple(
            r * w + c
            for r in range(w)
            for c in range(w)
            if not (0 <= r + dy < w and 0 <= c + dx < w)
        )

    return tuple(Move(dy, dx, kept(dy, dx)) for dy in (e, -e) for dx in (e, -e)) if e else ()


def _square_sources(w: int, e: int, moves: tuple[Move, ...]) -> tuple[tuple[int, ...], ...]:
    """First and second key of each place of the ``R x R`` square; a place has at most two."""
    size = w + 2 * e
    places = [(r + e) * size + c + e for r in range(w) for c in range(w)]
    for dy, dx, kept in moves:
        places += [(p // w + dy + e) * size + p % w + dx + e for p in kept]
    none = len(places)
    first, second = [none] * size**2, [none] * size**2
    for key, place in enumerate(places):
        (first if first[place] == none else second)[place] = key
    return tuple(first), tuple(second)


@dataclass(frozen=True)
class FocalGeometry:
    """The key set of a window.

    Args:
        window_size: Window side w, in tokens.
        expand_size: By how many tokens the window looks beyond each side (e), from 0 to w.
        focal_window: Side f of the coarse region, in windows; odd.
        focal_level: Number of levels L, the fine one included; ``2^(L-2) <= w``.
        shift_size: By how much the caller has rolled the map; own keys across the seam are masked.

    Attributes:
        moves: The neighbour groups in the order of their bias table; empty without expand.
        square_sources: For each place of the ``R x R`` square its first and second key, counted
            own keys first; ``w * w + num_neighbors`` stands for "no such key".

    Raises:
        ValueError: If a value is out of range.
    """

    window_size: int
    expand_size: int = 0
    focal_window: int = 1
    focal_level: int = 1
    shift_size: int = 0
    moves: tuple[Move, ...] = field(init=False, repr=False, compare=False)
    square_sources: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        w, e, f, levels = self.window_size, self.expand_size, self.focal_window, self.focal_level
        if w < 1:
            raise ValueError(f'window_size must be at least 1, got {w}')
        if not 0 <= e <= w:
            raise ValueError(f'expand_size must lie between 0 and window_size = {w}, got {e}')
        if f < 1 or f % 2 == 0:
            raise ValueError(f'focal_window must be odd and positive, got {f}')
        if levels < 1 or 2**levels > 4 * w:
            raise ValueError(
                'focal_level must be at least 1 and 2^(focal_level - 2) at most '
                f'window_size = {w}, got {levels}'
            )
        if not 0 <= self.shift_size < w:
            raise ValueError(
                f'shift_size must lie between 0 and window_size - 1, got {self.shift_size}'
            )
        # Plain attributes rather than cached properties: torch.compile cannot trace the latter.
        object.__setattr__(self, 'moves', _neighbor_moves(w, e))
        object.__setattr__(self, 'square_sources', _square_sources(w, e, self.moves))

    @property
    def num_neighbors(self) -> int:
        """Neighbour keys of one window, those attended twice counted twice (132 for 7 and 3)."""
        w, e = self.window_size, self.expand_size
        return 4 * (w * w - (w - e) ** 2)

    @property
    def fine_size(self) -> int:
        """Side R of the square that holds own and neighbour keys."""
        return self.window_size + 2 * self.expand_size

    @property
    def coarse_levels(self) -> range:
        return range(self.focal_level - 1)

    @property
    def num_keys(self) -> int:
        """Merged keys K of one window: ``R*R`` and ``F*F`` of each coarse level."""
        return self.fine_size**2 + sum(self.region_size(k) ** 2 for k in self.coarse_levels)

    def cell_size(self, level: int) -> int:
        """Side in tokens of what is pooled to one token of a coarse level."""
        return self.window_size // 2**level

    def region_size(self, level: int) -> int:
        """Side F of the coarse region: the window's ``2^k`` cells and ``f // 2`` on each side."""
        return self.focal_window + 2**level - 1


_INDEX_CACHE: dict[tuple, Tensor] = {}


def _index_tensor(values: tuple[int, ...], device: torch.device) -> Tensor:
    """A constant index, kept in eager mode: its copy to a GPU would wait for the device."""
    if cpu.eager_refusals(()):  # function transforms and fake tensors want one of their own
        return torch.tensor(values, device=device)
    key = (values, device)
    if key not in _INDEX_CACHE:
        with torch.inference_mode(False):  # an inference tensor could not be saved for backward
            _INDEX_CACHE[key] = torch.tensor(values, device=device)
    return _INDEX_CACHE[key]


def relative_bias(table: Tensor, window_size: int) -> Tensor:
    """Expand a relative position table to one value per query and key.

    Args:
        table: ``(h, S, S)`` with ``S = w + F - 1``; row ``qr - kr + F - 1``, likewise columns.
        window_size: Window side w.

    Returns:
        ``(h, w*w, F*F)``.
    """
    side = table.shape[-1] - window_size + 1
    # Along a flipped axis index w - 1 - q + k is a sliding window of length F, queries backward.
    by_query = table.flip(1, 2).unfold(1, side, 1).unfold(2, side, 1).flip(1, 2)
    return by_query.reshape(table.shape[0], window_size**2, side**2)


def own_bias(table: Tensor, window_size: int) -> Tensor:
    """``((2w-1)^2, h)`` -> ``(h, w*w, w*w)``."""
    side = 2 * window_size - 1
    return relative_bias(table.t().reshape(-1, side, side), window_size)


def coarse_bias(table: Tensor, window_size: int, region_size: int) -> Tensor:
    """``(h, (w+F-1)^2)`` -> ``(h, w*w, F*F)``."""
    side = window_size + region_size - 1
    return relative_bias(table.reshape(-1, side, side), window_size)


def merged_bias(bias: FocalBias, geometry: FocalGeometry) -> Tensor:
    """Compose all tables for the merged key set of ``key_index``, unless that is done.

    Returns:
        ``(h, w*w, K)`` with ``K = R*R + sum F*F``, differentiable in every table.
    """
    if bias.merged is not None:
        return bias.merged
    parts = [own_bias(bias.own, geometry.window_size)]
    if bias.neighbors is not None:
        keys = torch.cat([parts[0], bias.neighbors[0]], dim=-1)
        keys = torch.nn.functional.pad(keys, (0, 1), value=NO_KEY)
        first, second = (
            keys.index_select(-1, _index_tensor(source, keys.device))
            for source in geometry.square_sources
        )
        parts = [torch.logaddexp(first, second)]
    parts += [
        coarse_bias(table, geometry.window_size, geometry.region_size(level))
        for level, table in enumerate(bias.coarse)
    ]
    return torch.cat(parts, dim=-1)


def _spans(count: int, step: int, margin: int, size: int, device: torch.device) -> Tensor:
    """Positions covered by ``count`` spans of ``size``, one every ``step``: ``(count, size)``."""
    start = torch.arange(count, device=device) * step - margin
    return start[:, None] + torch.arange(size, device=device)


def _grid(rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    """``(nH, S), (nW, S)`` -> row and column of every key, to broadcast to ``(nH, nW, S, S)``."""
    return rows[:, None, :, None], cols[None, :, None, :]


def coarse_validity(
    geometry: FocalGeometry, level: int, nh: int, nw: int, device: torch.device
) -> Tensor:
    """Which keys of a coarse region lie on the coarse map: bool ``(N, F*F)``."""
    cells, margin = 2**level, geometry.focal_window // 2
    size = geometry.region_size(level)
    rows, cols = (_spans(n, cells, margin, size, device) for n in (nh, nw))
    rows, cols = _grid((rows >= 0) & (rows < nh * cells), (cols >= 0) & (cols < nw * cells))
    return (rows & cols).reshape(nh * nw, size**2)


def seam_mask(geometry: FocalGeometry, height: int, width: int, device: torch.device) -> Tensor:
    """What shifted windows add to their own logits: ``(N, w*w, w*w)``, 0 or ``MASKED``.

    The seam cuts the rolled map into three bands along each axis; tokens of different bands do not
    see each other, as in Swin.
    """
    w, shift = geometry.window_size, geometry.shift_size

    def bands(size: int) -> Tensor:
        position = torch.arange(size, device=device)
        return ((position >= size - w).long() + (position >= size - shift).long()).view(-1, w)

    rows, cols = _grid(bands(height), bands(width))
    label = (3 * rows + cols).reshape(-1, w * w)
    return MASKED * (label[:, :, None] != label[:, None, :])


def merged_mask(
    geometry: FocalGeometry, height: int, width: int, device: torch.device
) -> Tensor | None:
    """What depends on the window's place: ``(N, 1 or w*w, K)`` to add to the logits, or None."""
    w, e, size = geometry.window_size, geometry.expand_size, geometry.fine_size
    nh, nw = height // w, width // w
    if geometry.focal_level == 1 and geometry.shift_size == 0:
        return None
    if geometry.shift_size:
        own = seam_mask(geometry, height, width, device).view(nh * nw, w * w, w, w)
        fine = torch.nn.functional.pad(own, (e, e, e, e)).flatten(2)
    else:
        fine = torch.zeros(nh * nw, 1, size * size, device=device)
    coarse = [
        MASKED * ~coarse_validity(geometry, level, nh, nw, device)[:, None]
        for level in geometry.coarse_levels
    ]
    return torch.cat([fine, *(mask.expand(-1, fine.shape[1], -1) for mask in coarse)], dim=-1)


def key_index(geometry: FocalGeometry, height: int, width: int, device: torch.device) -> Tensor:
    """Where the merged keys of each window lie in a bank of tokens.

    The bank holds the ``H * W`` tokens of the map, then those of each coarse map, all row-major,
    then one zero token, which stands for coarse cells outside their map.

    Returns:
        Long ``(N, K)`` with ``K = R*R + sum F*F``.
    """
    w, e, size = geometry.window_size, geometry.expand_size, geometry.fine_size
    nh, nw = height // w, width // w
    rows, cols = _grid(
        _spans(nh, w, e, size, device) % height, _spans(nw, w, e, size, device) % width
    )
    parts, valid, offset = [(rows * width + cols).reshape(nh * nw, -1)], [], height * width
    for level in geometry.coarse_levels:
        cells, side = 2**level, geometry.region_size(level)
        margin = geometry.focal_window // 2
        rows, cols = _grid(*(_spans(n, cells, margin, side, device) for n in (nh, nw)))
        parts.append((offset + rows * nw * cells + cols).reshape(nh * nw, -1))
        valid.append(coarse_validity(geometry, level, nh, nw, device))
        offset += nh * nw * cells**2
    parts[1:] = [
        torch.where(inside, part, offset) for part, inside in zip(parts[1:], valid, strict=True)
    ]
    return torch.cat(parts, dim=1)


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """``(B, H, W, C)`` -> ``(B, N, w*w, C)``."""
    b, height, width, c = x.shape
    w = window_size
    nh, nw = height // w, width // w
    x = x.view(b, nh, w, nw, w, c)
    return x.transpose(2, 3).reshape(b, nh * nw, w * w, c)


def window_reverse(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """``(B, N, w*w, C)`` -> ``(B, H, W, C)``."""
    b, _, _, c = windows.shape
    w = window_size
    x = windows.view(b, height // w, width // w, w, w, c)
    return x.transpose(2, 3).reshape(b, height, width, c)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Logits, bias and softmax are never computed in half precision."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
