# SPDX-License-Identifier: Apache-2.0
"""Geometry of focal attention: the keys of a window and their positions.

Shape legend, used throughout ``focal_attention``:

    B batch            H, W token map, multiples of w      C channels = h * d
    h heads            d channels per head                 w window side
    e expand size      L focal levels, the fine one too    f focal window (odd)
    nH, nW windows down and across, N = nH * nW            K keys of one window
    R side of a region: w + 2e (fine), f + 2^k - 1 (coarse level k)
    T tokens of all maps: H * W, then 4^k N of each coarse level k

A window attends to three groups of keys. **Window keys** are its own ``w * w`` tokens. **Neighbor
keys** are the tokens outside the window that are covered when the window is moved diagonally by
``e`` (four moves). **Coarse keys** are the ``R * R`` pooled cells around the window, for each
coarse level ``k``. Neighbor keys wrap around the map and are never masked. Coarse keys outside
their map are zero vectors, and ``MASKED`` is added to their logits.

Moved windows overlap, so some neighbor keys are attended twice, each time with another bias. Since
``exp(s + a) + exp(s + b) = exp(s + logaddexp(a, b))``, the two are combined exactly, and window
and neighbor keys form one wrapped square. All keys of a window are therefore square *regions*: one
of the fine map and one of each coarse map (:class:`Region`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

# Added to the logits of masked keys (the released code's value; not -inf).
MASKED = -100.0


class Region(NamedTuple):
    """Keys of every window on one map: a square of ``R * R`` keys in row-major order.

    Attributes:
        side: Side R, in keys.
        step: Distance between the regions of adjacent windows: w, or ``2^k`` at coarse level k.
        margin: Number of keys between the region's edge and the window: e, or ``f // 2``.
        first: Index of the first key among all K keys of a window.
        is_wrapped: Whether keys beyond the map's edge wrap around (fine) or are masked (coarse).
    """

    side: int
    step: int
    margin: int
    first: int
    is_wrapped: bool


class Move(NamedTuple):
    """Group of neighbor keys: a move by rows and columns, and the tokens that are kept."""

    rows: int
    cols: int
    kept: tuple[int, ...]


def _neighbor_moves(w: int, e: int) -> tuple[Move, ...]:
    """Return the four groups of neighbor keys: tokens of moved windows outside the window."""

    def kept(dy: int, dx: int) -> tuple[int, ...]:
        return tuple(
            r * w + c
            for r in range(w)
            for c in range(w)
            if not (0 <= r + dy < w and 0 <= c + dx < w)
        )

    return tuple(Move(dy, dx, kept(dy, dx)) for dy in (e, -e) for dx in (e, -e)) if e else ()


def _square_sources(w: int, e: int, moves: tuple[Move, ...]) -> tuple[tuple[int, ...], ...]:
    """Return first and second key of each place of the fine region; a place has at most two."""
    side = w + 2 * e
    places = [(r + e) * side + c + e for r in range(w) for c in range(w)]
    for dy, dx, kept in moves:
        places += [(p // w + dy + e) * side + p % w + dx + e for p in kept]
    none = len(places)
    first, second = [none] * side**2, [none] * side**2
    for key, place in enumerate(places):
        (first if first[place] == none else second)[place] = key
    return tuple(first), tuple(second)


def regions_of(w: int, e: int, f: int, levels: int) -> tuple[Region, ...]:
    """Return the fine region, then one per coarse level."""
    regions = [Region(w + 2 * e, w, e, 0, True)]
    for level in range(levels - 1):
        first = regions[-1].first + regions[-1].side ** 2
        regions.append(Region(f + 2**level - 1, 2**level, f // 2, first, False))
    return tuple(regions)


def find_error(w: int, e: int, f: int, levels: int) -> tuple[str, str] | None:
    """Return the first invalid field of a :class:`FocalGeometry` and its allowed values."""
    checks = {
        'window_size': (w >= 1, f'must be at least 1, got {w}'),
        'expand_size': (0 <= e <= w, f'must lie between 0 and window_size = {w}, got {e}'),
        'focal_window': (f >= 1 and f % 2 == 1, f'must be odd and positive, got {f}'),
        'focal_level': (
            levels >= 1 and 2**levels <= 4 * w,
            f'must be at least 1 and 2^(focal_level - 2) at most window_size = {w}, got {levels}',
        ),
    }
    errors = ((name, message) for name, (is_valid, message) in checks.items() if not is_valid)
    return next(errors, None)


@dataclass(frozen=True)
class FocalGeometry:
    """The key set of a window.

    Args:
        window_size: Window side w, in tokens.
        expand_size: Number of tokens attended beyond each side of the window (e), 0 to w.
        focal_window: Side f of the coarse region at level 0, in windows; odd.
        focal_level: Number of levels L, including the fine one; ``2^(L-2) <= w``.

    Attributes:
        moves: Groups of neighbor keys in the order of their bias table; empty if e = 0.
        square_sources: First and second key of each place of the fine region, as indices of window
            keys, then neighbor keys; ``w * w + num_neighbors`` means "no key".
        regions: The fine region, then one per coarse level; this is the order of all keys.

    Raises:
        ValueError: If a value is out of range.
    """

    window_size: int
    expand_size: int = 0
    focal_window: int = 1
    focal_level: int = 1
    moves: tuple[Move, ...] = field(init=False, repr=False, compare=False)
    square_sources: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    regions: tuple[Region, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        w, e, f, levels = self.window_size, self.expand_size, self.focal_window, self.focal_level
        error = find_error(w, e, f, levels)
        if error is not None:
            raise ValueError(' '.join(error))
        # Plain attributes rather than cached properties: torch.compile cannot trace the latter.
        object.__setattr__(self, 'moves', _neighbor_moves(w, e))
        object.__setattr__(self, 'square_sources', _square_sources(w, e, self.moves))
        object.__setattr__(self, 'regions', regions_of(w, e, f, levels))

    @property
    def num_neighbors(self) -> int:
        """Number of neighbor keys, duplicates counted twice (132 for w = 7 and e = 3)."""
        w, e = self.window_size, self.expand_size
        return 4 * (w * w - (w - e) ** 2)

    @property
    def coarse_levels(self) -> range:
        return range(self.focal_level - 1)

    @property
    def num_keys(self) -> int:
        """Number of keys K of all regions, including empty places of the fine region."""
        return self.regions[-1].first + self.regions[-1].side ** 2

    def cell_size(self, level: int) -> int:
        """Return the side, in tokens, of a cell that is pooled to one token of a coarse level."""
        return self.window_size // 2**level

    def map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return the size of the map, ``(H, W)``, and of each coarse map, ``(2^k nH, 2^k nW)``."""
        nh, nw = height // self.window_size, width // self.window_size
        return [(height, width), *((nh << k, nw << k) for k in self.coarse_levels)]

    def num_tokens(self, height: int, width: int) -> int:
        """Return the number of tokens T of the map and all coarse maps."""
        return sum(rows * cols for rows, cols in self.map_sizes(height, width))


def split_maps(tokens: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """View tokens ``(B, T, X)`` as maps ``(B, rows, cols, X)``, one per entry of ``sizes``."""
    maps, start = [], 0
    for rows, cols in sizes:
        maps.append(tokens[:, start : start + rows * cols].unflatten(1, (rows, cols)))
        start += rows * cols
    return maps


def trim(x: Tensor, cell: int, grid: Sequence[int]) -> Tensor:
    """Trim a map ``(B, H, W, C)`` to a grid of cells, evenly on opposite sides.

    The map is larger if its size is not a multiple of the cell (``w = 7``, cells of 2x2).
    """
    rows, cols = (count * cell for count in grid)
    top, left = (x.shape[1] - rows) // 2, (x.shape[2] - cols) // 2
    return x[:, top : top + rows, left : left + cols]


def _spans(count: int, region: Region, device: torch.device) -> Tensor:
    """Return the positions of the regions of ``count`` windows along an axis: ``(count, R)``."""
    start = torch.arange(count, device=device) * region.step - region.margin
    return start[:, None] + torch.arange(region.side, device=device)


def _grid(rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    """``(nH, R), (nW, R)`` -> row and column of every key, to broadcast to ``(nH, nW, R, R)``."""
    return rows[:, None, :, None], cols[None, :, None, :]


def coarse_validity(
    geometry: FocalGeometry, level: int, nh: int, nw: int, device: torch.device
) -> Tensor:
    """Return which keys of a coarse region lie on the coarse map: bool ``(N, R*R)``."""
    region, cells = geometry.regions[1 + level], 2**level
    rows, cols = (_spans(n, region, device) for n in (nh, nw))
    rows, cols = _grid((rows >= 0) & (rows < nh * cells), (cols >= 0) & (cols < nw * cells))
    return (rows & cols).reshape(nh * nw, region.side**2)


def seam_mask(
    geometry: FocalGeometry, height: int, width: int, shift: int, device: torch.device
) -> Tensor:
    """Return the mask of window keys in shifted windows: ``(N, w*w, w*w)``, 0 or ``MASKED``.

    The seam divides the rolled map into three bands along each axis. Tokens of different bands do
    not attend to each other, as in Swin.
    """
    w = geometry.window_size

    def bands(size: int) -> Tensor:
        position = torch.arange(size, device=device)
        return ((position >= size - w).long() + (position >= size - shift).long()).view(-1, w)

    rows, cols = _grid(bands(height), bands(width))
    label = (3 * rows + cols).reshape(-1, w * w)
    return MASKED * (label[:, :, None] != label[:, None, :])


def key_mask(
    geometry: FocalGeometry, height: int, width: int, shift: int, device: torch.device
) -> Tensor | None:
    """Return the mask to add to the logits, ``(N, 1 or w*w, K)``, or None if none is needed."""
    w, e, side = geometry.window_size, geometry.expand_size, geometry.regions[0].side
    nh, nw = height // w, width // w
    if geometry.focal_level == 1 and shift == 0:
        return None
    if shift:
        own = seam_mask(geometry, height, width, shift, device).view(nh * nw, w * w, w, w)
        fine = torch.nn.functional.pad(own, (e, e, e, e)).flatten(2)
    else:
        fine = torch.zeros(nh * nw, 1, side * side, device=device)
    coarse = [
        MASKED * ~coarse_validity(geometry, level, nh, nw, device)[:, None]
        for level in geometry.coarse_levels
    ]
    return torch.cat([fine, *(mask.expand(-1, fine.shape[1], -1) for mask in coarse)], dim=-1)


def key_index(geometry: FocalGeometry, height: int, width: int, device: torch.device) -> Tensor:
    """Return the token indices of the keys of each window.

    Returns:
        Long ``(N, K)``, indices into the T tokens; T for coarse keys outside their map.
    """
    nh, nw = height // geometry.window_size, width // geometry.window_size
    parts, start, outside = [], 0, geometry.num_tokens(height, width)
    # Level -1 is the fine map; coarse levels count from 0.
    for level, size in enumerate(geometry.map_sizes(height, width), -1):
        region = geometry.regions[1 + level]
        rows, cols = (_spans(n, region, device) for n in (nh, nw))
        if region.is_wrapped:
            rows, cols = rows % height, cols % width
        rows, cols = _grid(rows, cols)
        index = (start + rows * size[1] + cols).reshape(nh * nw, -1)
        if not region.is_wrapped:
            is_inside = coarse_validity(geometry, level, nh, nw, device)
            index = torch.where(is_inside, index, outside)
        parts.append(index)
        start += size[0] * size[1]
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
    """Return the dtype in which bias tables are combined and softmax is computed."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
