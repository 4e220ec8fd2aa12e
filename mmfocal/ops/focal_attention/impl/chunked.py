# SPDX-License-Identifier: Apache-2.0
"""Focal attention for CPUs in chunks of windows, whose logits stay in the cache.

Each region is cut from a padded map: the fine map is wrapped by ``e`` tokens, and a coarse map has
a margin of zeros. The maps are stored head by head, so that the keys of a window are a few long
runs of memory, which are copied for each chunk. Autograd saves the input maps only; the backward
pass recomputes the attention weights. Scratch memory is reused between calls, because fresh pages
can cost more than the arithmetic on a CPU.

See ``geometry`` for the shape legend; ``n`` is the number of windows of a tile times heads.
"""

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmfocal import compat
from mmfocal.ops.cpu import memory

from ..bias import NO_KEY, bias_tables
from ..geometry import MASKED, FocalGeometry, Region, key_mask, seam_mask, split_maps
from ..inputs import FocalInputs

# Bytes of logits per chunk: large enough to hide call overhead, small enough for a level 3 cache.
# Small inputs use half of it, because scratch memory is then large compared with their maps.
TILE_BYTES = 8 * 2**20
# A key whose logit is this far below the largest has a weight that is lost in rounding, even in
# float64.
NEGLIGIBLE = 60.0


def unsupported_reasons(inputs: FocalInputs) -> list[str]:
    """Return the reasons why inputs are unsupported."""
    reasons = memory.unsupported_reasons([inputs.qkv, *bias_tables(inputs.bias)])
    return [*reasons, 'attention dropout is not supported'] if inputs.dropout_p > 0 else reasons


def _add_apart(target: Tensor, values: Tensor, apart: int) -> None:
    """Add to overlapping windows of dimension -4; windows at distance ``apart`` are disjoint."""
    for start in range(min(apart, values.shape[-4])):
        target[..., start::apart, :, :, :].add_(values[..., start::apart, :, :, :])


def _slide(x: Tensor, dim: int, region: Region) -> Tensor:
    """View a dimension as ``(windows, R)``; R becomes the second last dimension."""
    return x.unfold(dim, region.side, region.step).transpose(-1, -2)


def region_windows(padded: Tensor, region: Region) -> Tensor:
    """View ``(2, B, h, H', W', d)`` as ``(2, B, h, nH, nW, R, R, d)``."""
    return _slide(_slide(padded, 3, region), 4, region)


def add_regions(padded: Tensor, values: Tensor, region: Region, rows: slice, cols: slice) -> None:
    """Add ``(2, B, h, rows, cols, R, R, d)`` to overlapping regions of a padded map.

    Columns are summed first, then rows; disjoint windows are added in one operation.
    """
    apart = math.ceil(region.side / region.step)
    *planes, num_rows, num_cols, _, _, d = values.shape
    width = (num_cols - 1) * region.step + region.side
    shape = (*planes, num_rows, region.side, width, d)
    sums = memory.scratch('sums of columns', shape, padded)
    sums = sums.zero_().transpose(4, 5)
    target = _slide(sums, 4, region)
    _add_apart(target, values, apart)
    target = _slide(padded, 3, region)[:, :, :, rows].narrow(4, cols.start * region.step, width)
    _add_apart(target, sums, apart)


def interior(padded: Tensor, region: Region) -> Tensor:
    """View of a padded map without its margin."""
    rows, cols = (slice(region.margin, n - region.margin) for n in padded.shape[3:5])
    return padded[:, :, :, rows, cols]


def select_region(keys: Tensor, region: Region) -> Tensor:
    """View the keys of one region of ``(..., K, d)`` as ``(..., R, R, d)``."""
    keys = keys[..., region.first : region.first + region.side**2, :]
    return keys.unflatten(-2, (region.side, region.side))


def wrap(padded: Tensor, margin: int) -> None:
    """Fill the margin of ``(2, B, h, H', W', d)`` with the opposite side of the map."""
    for dim in (4, 3):
        size = padded.shape[dim] - 2 * margin
        padded.narrow(dim, 0, margin).copy_(padded.narrow(dim, size, margin))
        padded.narrow(dim, margin + size, margin).copy_(padded.narrow(dim, margin, margin))


def unwrap(padded: Tensor, margin: int) -> None:
    """Add the margin to the opposite side of the map: the transpose of ``wrap``."""
    for dim in (3, 4):
        size = padded.shape[dim] - 2 * margin
        padded.narrow(dim, size, margin).add_(padded.narrow(dim, 0, margin))
        padded.narrow(dim, margin, margin).add_(padded.narrow(dim, margin + size, margin))


def split_heads(x: Tensor, num_heads: int, parts: int) -> Tensor:
    """View ``(B, H, W, parts * h * d)`` as ``(parts, B, h, H, W, d)``."""
    return x.unflatten(-1, (parts, num_heads, -1)).permute(3, 0, 4, 1, 2, 5)


def split_windows(x: Tensor, window_size: int) -> Tensor:
    """View ``(B, h, H, W, d)`` as ``(B, h, nH, nW, w, w, d)``."""
    w = window_size
    return x.unflatten(3, (-1, w)).unflatten(2, (-1, w)).transpose(3, 4)


class Maps(NamedTuple):
    """Queries by window, ``(B, h, nH, nW, w, w, d)``; keys and values ``(2, B, h, H, W, d)``.

    ``kv`` holds one map per region. All are views of the tokens.
    """

    q: Tensor
    kv: list[Tensor]


def view_maps(
    tokens: Tensor, map_size: tuple[int, int], num_heads: int, geometry: FocalGeometry
) -> Maps:
    """View ``qkv`` of the inputs, or its gradient, as maps."""
    maps = [
        split_heads(part, num_heads, 3)
        for part in split_maps(tokens, geometry.map_sizes(*map_size))
    ]
    return Maps(split_windows(maps[0][0], geometry.window_size), [part[1:] for part in maps])


class Tile(NamedTuple):
    """Windows that are computed at a time."""

    images: slice
    heads: slice
    rows: slice
    cols: slice

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each slice."""
        return tuple(part.stop - part.start for part in self)


class Call(NamedTuple):
    """Arguments of a call that are not tensors; see ``FocalInputs``."""

    map_size: tuple[int, int]
    geometry: FocalGeometry
    scale: float
    shift: int


class ChunkedAttention:
    """Data that the tiles of one call share: maps, bias and masks.

    Args:
        qkv: Queries, keys and values of all tokens, ``(B, T, 3C)``.
        bias: Combined bias ``(h, w*w, K)``; everything is computed in its dtype.
        call: Map size, geometry, scale and shift.
    """

    def __init__(self, qkv: Tensor, bias: Tensor, call: Call) -> None:
        self.map_size, self.geometry, self.scale, self.shift = call
        self.bias = bias
        self.w, self.regions = self.geometry.window_size, self.geometry.regions
        self.num_heads, self.area, self.num_keys = bias.shape
        self.maps = view_maps(qkv, self.map_size, self.num_heads, self.geometry)
        self.mask = self._validity_mask()

    def _validity_mask(self) -> Tensor | None:
        """Return ``MASKED`` for coarse keys outside their map, else 0: ``(nH, nW, 1, K)``."""
        # the seam of a shift is masked by _add_seam
        mask = key_mask(self.geometry, *self.map_size, 0, self.bias.device)
        if mask is None:
            return None
        return mask.to(self.bias).view(*self.maps.q.shape[2:4], 1, self.num_keys)

    def planes_and_tiles(self) -> Iterator[tuple[slice, slice, list[Tile]]]:
        """Yield slices of images and heads whose maps are stored together, and their tiles."""
        batch, heads, nh, nw = self.maps.q.shape[:4]
        window_bytes = self.bias[0].numel() * self.bias.element_size()
        share = window_bytes * batch * heads * nh * nw // 32
        tile_size = min(TILE_BYTES, max(TILE_BYTES // 2, share)) // window_bytes
        rows_and_cols = [
            (rows, cols)
            for rows in memory.spans(nh, tile_size // nw)
            for cols in memory.spans(nw, tile_size)
        ]
        for image_span in memory.spans(batch, tile_size // (nh * nw * heads)):
            for head_span in memory.spans(heads, tile_size // (nh * nw)):
                tiles = [Tile(image_span, head_span, *place) for place in rows_and_cols]
                yield image_span, head_span, tiles

    def _take(self, name: str, *shape: int) -> Tensor:
        return memory.scratch(name, shape, self.bias)

    def padded_maps(self, name: str, images: slice, heads: slice) -> list[Tensor]:
        """Return uninitialized workspaces ``(2, B, h, H', W', d)``, one per region."""
        maps = []
        for i, (region, kv) in enumerate(zip(self.regions, self.maps.kv)):
            *planes, rows, cols, d = kv[:, images, heads].shape
            size = (rows + 2 * region.margin, cols + 2 * region.margin)
            maps.append(self._take(f'{name} {i}', *planes, *size, d))
        return maps

    def load_maps(self, images: slice, heads: slice) -> list[Tensor]:
        """Return padded maps of keys and values: wrapped (fine) or padded with zeros (coarse)."""
        fine, *coarse = maps = self.padded_maps('maps', images, heads)
        for padded in coarse:
            padded.zero_()
        for region, kv, padded in zip(self.regions, self.maps.kv, maps):
            interior(padded, region).copy_(kv[:, images, heads])
        wrap(fine, self.regions[0].margin)
        return maps

    def load_windows(self, name: str, windows: Tensor, tile: Tile) -> Tensor:
        """Copy a tile of ``(B, h, nH, nW, w, w, d)``: ``(n, w*w, d)``."""
        windows = windows[tile]
        copied = self._take(name, *windows.shape).copy_(windows)
        return copied.view(-1, self.area, windows.shape[-1])

    def windows(self, maps: list[Tensor]) -> list[Tensor]:
        """See :func:`region_windows`; one view per region."""
        return [region_windows(padded, region) for region, padded in zip(self.regions, maps)]

    def load_keys(self, windows: list[Tensor], tile: Tile) -> Tensor:
        """Copy keys and values of a tile: ``(2, n, K, d)``."""
        keys = self._take('keys', 2, *tile.shape, self.num_keys, self.maps.q.shape[-1])
        for region, source in zip(self.regions, windows):
            # Separate copies, so that each thread copies the windows that it multiplies.
            for target, part in zip(select_region(keys, region), source):
                target.copy_(part[:, :, tile.rows, tile.cols])
        return keys.flatten(1, 4)

    def add_keys(self, maps: list[Tensor], keys: Tensor, tile: Tile) -> None:
        """Add ``(2, n, K, d)`` to the padded maps: the transpose of ``load_keys``."""
        keys = keys.unflatten(1, tile.shape)
        for region, padded in zip(self.regions, maps):
            add_regions(padded, select_region(keys, region), region, tile.rows, tile.cols)

    def _window_keys(self, keys: Tensor) -> Tensor:
        """View the window keys of ``(..., K, d)`` as ``(..., w, w, d)``."""
        e, w = self.geometry.expand_size, self.w
        return select_region(keys, self.regions[0])[..., e : e + w, e : e + w, :]

    @cached_property
    def _exclusion(self) -> Tensor | None:
        """Mask with ``NO_KEY`` instead of ``MASKED``."""
        return None if self.mask is None else torch.where(self.mask < 0, NO_KEY, 0.0).to(self.mask)

    @cached_property
    def _highest_masked(self) -> float:
        """Largest logit of a key outside its map; such keys are zeros."""
        return self.bias.max().item() + MASKED

    @cached_property
    def _diagonal_bias(self) -> Tensor:
        """Bias of each query and the key at the same token: ``(h, w*w)``."""
        return self._window_keys(self.bias[..., None]).flatten(-3).diagonal(dim1=-2, dim2=-1)

    def _are_masked_negligible(self, q: Tensor, k: Tensor, tile: Tile) -> bool:
        """Return whether, for every query, its own token far outweighs all masked keys."""
        same = self._window_keys(k).flatten(1, 2)
        logits = (q * same).sum(-1).view(*tile.shape, -1) * self.scale
        logits += self._diagonal_bias[tile.heads, None, None]
        return logits.min().item() > self._highest_masked + NEGLIGIBLE

    def _coarse_mask(self, q: Tensor, k: Tensor, tile: Tile) -> Tensor | None:
        """Return the mask of coarse keys outside their map: ``(rows, cols, 1, K)``.

        Exponentials of their logits are often denormal numbers in float32, which some CPUs compute
        several times more slowly. Negligible keys are therefore excluded.
        """
        mask = self.mask
        if mask is not None and self._are_masked_negligible(q, k, tile):
            mask = self._exclusion
        return None if mask is None else mask[tile.rows, tile.cols]

    def weights(self, q: Tensor, k: Tensor, tile: Tile) -> Tensor:
        """Compute the attention weights of a tile: ``(n, w*w, K)``."""
        logits = self._take('logits', *tile.shape, self.area, self.num_keys)
        bias = self.bias[tile.heads, None, None].expand(*tile.shape, -1, -1)
        mask = self._coarse_mask(q, k, tile)
        if mask is None:
            logits.copy_(bias)
        else:
            torch.add(bias, mask, out=logits)
        if self.shift:
            self._add_seam(logits, tile)
        logits = logits.flatten(0, 3).baddbmm_(q, k.mT, alpha=self.scale)
        return torch.softmax(logits, dim=-1, out=logits)

    def _add_seam(self, logits: Tensor, tile: Tile) -> None:
        """Mask window keys across the seam, which crosses the last windows only."""
        w = self.w
        nh, nw = self.maps.q.shape[2:4]
        rows, cols = (
            (torch.arange(n, device=logits.device)[span] == n - 1).long()
            for n, span in ((nh, tile.rows), (nw, tile.cols))
        )
        seam = seam_mask(self.geometry, 2 * w, 2 * w, self.shift, logits.device).to(logits)
        own = self._window_keys(logits[..., None]).squeeze(-1)
        own += seam.view(2, 2, w * w, w, w)[rows[:, None], cols]

    def forward(self, out: Tensor) -> None:
        """Fill the output ``(B, H, W, C)``."""
        out_windows = split_windows(split_heads(out, self.num_heads, 1)[0], self.w)
        for images, heads, tiles in self.planes_and_tiles():
            windows = self.windows(self.load_maps(images, heads))
            for tile in tiles:
                q = self.load_windows('q', self.maps.q, tile)
                k, v = self.load_keys(windows, tile)
                weights = self.weights(q, k, tile)
                attended = torch.bmm(weights, v, out=self._take('out', *q.shape))
                target = out_windows[tile]
                target.copy_(attended.view(target.shape))

    def backward(self, d_out: Tensor, d_qkv: Tensor, d_bias: Tensor) -> None:
        """Fill the gradient of the tokens; add to that of the bias."""
        d_out = split_windows(split_heads(d_out, self.num_heads, 1)[0], self.w)
        d_q, d_kv = view_maps(d_qkv, self.map_size, self.num_heads, self.geometry)
        d_qkv[:, math.prod(self.map_size) :, : d_qkv.shape[-1] // 3] = 0  # coarse queries
        for images, heads, tiles in self.planes_and_tiles():
            windows = self.windows(self.load_maps(images, heads))
            d_maps = self.padded_maps('gradients of maps', images, heads)
            for d_map in d_maps:
                d_map.zero_()
            for tile in tiles:
                d_keys = self._backward_tile(tile, windows, d_out, d_q, d_bias)
                self.add_keys(d_maps, d_keys, tile)
            unwrap(d_maps[0], self.regions[0].margin)
            for region, target, d_map in zip(self.regions, d_kv, d_maps):
                target[:, images, heads].copy_(interior(d_map, region))

    def _backward_tile(
        self, tile: Tile, windows: list[Tensor], d_out: Tensor, d_q: Tensor, d_bias: Tensor
    ) -> Tensor:
        """Fill the gradient of the queries, add to that of the bias.

        Returns:
            Gradient of keys and values, ``(2, n, K, d)``; scratch memory.
        """
        q = self.load_windows('q', self.maps.q, tile)
        k, v = keys = self.load_keys(windows, tile)
        weights = self.weights(q, k, tile)
        d_attended = self.load_windows('gradient of out', d_out, tile)

        d_weights = self._take('gradient of logits', *weights.shape)
        torch.bmm(d_attended, v.mT, out=d_weights)
        torch.bmm(weights.mT, d_attended, out=v)  # overwrites memory that is no longer needed
        d_logits = compat.softmax_backward_(d_weights, weights)
        d_queries = d_attended.baddbmm_(d_logits, k, beta=0, alpha=self.scale)
        k.baddbmm_(d_logits.mT, q, beta=0, alpha=self.scale)

        target = d_q[tile]
        target.copy_(d_queries.view(target.shape))
        d_logits = d_logits.view(*tile.shape, *d_logits.shape[1:])
        d_bias[tile.heads].add_(d_logits.flatten(2, 3).sum(2).sum(0))  # a joint sum is slow
        return keys


class _ChunkedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, call: Call) -> Tensor:
        ctx.save_for_backward(qkv, bias)
        ctx.call = call
        attention = ChunkedAttention(qkv, bias, call)
        out = qkv.new_empty(qkv.shape[0], *attention.map_size, qkv.shape[-1] // 3)
        attention.forward(out)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "attn_impl='chunked' does not support second derivatives (create_graph=True); "
                "use attn_impl='sdpa'"
            )
        qkv, bias = ctx.saved_tensors
        d_qkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
        d_bias = torch.zeros_like(bias)
        ChunkedAttention(qkv, bias, ctx.call).backward(d_out, d_qkv, d_bias)
        return d_qkv, d_bias, None


def focal_attention(inputs: FocalInputs, bias: Tensor) -> Tensor:
    """See :func:`mmfocal.ops.focal_attention.focal_attention`."""
    call = Call(inputs.map_size, inputs.geometry, inputs.scale, inputs.shift)
    return _ChunkedFunction.apply(inputs.qkv, bias, call)
