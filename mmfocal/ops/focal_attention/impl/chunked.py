# SPDX-License-Identifier: Apache-2.0
"""Focal attention for CPUs: a few windows at a time, so that their logits stay in the cache.

Every group of merged keys consists of square regions of a padded map: the fine map is wrapped by
``e`` tokens, a coarse map has a margin of zeros. The maps are laid out head by head, so that the
keys of a window are a few long runs of memory, copied when its turn comes. Autograd keeps the
input maps only; the backward pass computes the attention weights again. Scratch memory is kept
from call to call: on a CPU, fresh pages can cost more than the arithmetic on them.

See ``geometry`` for the shape legend; ``n`` counts the windows of a tile, each head's apart.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mmfocal.ops import cpu

from ..geometry import FocalBias, FocalGeometry, merged_bias, merged_mask, seam_mask

# Logits that are computed at a time: enough to hide the calls, few enough for a level 3 cache.
TILE_BYTES = 4 * 2**20


def refusals(
    qkv: Tensor,
    coarse_kv: tuple[Tensor, ...],
    bias: FocalBias,
    geometry: FocalGeometry,
    scale: float,
    dropout_p: float,
) -> list[str]:
    """Reasons why this back end cannot run a call."""
    reasons = cpu.refusals([qkv, *coarse_kv, *bias.tables])
    return [*reasons, 'it drops no attention weights'] if dropout_p > 0 else reasons


def _add_apart(target: Tensor, values: Tensor, apart: int) -> None:
    """Add to windows, the dimension -4, of which those that are ``apart`` share nothing."""
    for start in range(min(apart, values.shape[-4])):
        target[..., start::apart, :, :, :].add_(values[..., start::apart, :, :, :])


class KeyGroup(NamedTuple):
    """Keys of all windows that are square regions of one padded map.

    Attributes:
        size: Side of a region.
        step: Distance between the regions of adjacent windows.
        margin: Padding of the map on each side.
        keys: Place among the merged keys.
    """

    size: int
    step: int
    margin: int
    keys: slice

    def slide(self, x: Tensor, dim: int) -> Tensor:
        """View a dimension as ``(windows, size)``; the latter stands before the last dimension."""
        return x.unfold(dim, self.size, self.step).transpose(-1, -2)

    def regions(self, padded: Tensor) -> Tensor:
        """View ``(2, B, h, H', W', d)`` as ``(2, B, h, nH, nW, size, size, d)``."""
        return self.slide(self.slide(padded, 3), 4)

    def add_regions(self, padded: Tensor, values: Tensor, rows: slice, cols: slice) -> None:
        """Add ``(2, B, h, rows, cols, size, size, d)`` to regions of a padded map, which overlap.

        First columns are added up, then rows, each time those windows at once that share nothing.
        """
        apart = math.ceil(self.size / self.step)
        *planes, num_rows, num_cols, _, _, d = values.shape
        width = (num_cols - 1) * self.step + self.size
        sums = cpu.scratch('sums of columns', (*planes, num_rows, self.size, width, d), padded)
        sums = sums.zero_().transpose(4, 5)
        target = self.slide(sums, 4)
        _add_apart(target, values, apart)
        target = self.slide(padded, 3)[:, :, :, rows].narrow(4, cols.start * self.step, width)
        _add_apart(target, sums, apart)

    def interior(self, padded: Tensor) -> Tensor:
        """View of a padded map without its margin."""
        rows, cols = (slice(self.margin, n - self.margin) for n in padded.shape[3:5])
        return padded[:, :, :, rows, cols]

    def select(self, keys: Tensor) -> Tensor:
        """View this group of ``(..., K, d)`` as ``(..., size, size, d)``."""
        return keys[..., self.keys, :].unflatten(-2, (self.size, self.size))


def key_groups(geometry: FocalGeometry) -> list[KeyGroup]:
    """The fine group, then one per coarse level: the order of ``merged_bias``."""
    w, size = geometry.window_size, geometry.fine_size
    groups = [KeyGroup(size, w, geometry.expand_size, slice(0, size**2))]
    for level in geometry.coarse_levels:
        size, start = geometry.region_size(level), groups[-1].keys.stop
        keys = slice(start, start + size**2)
        groups.append(KeyGroup(size, 2**level, geometry.focal_window // 2, keys))
    return groups


def wrap(padded: Tensor, margin: int) -> None:
    """Fill the margin of ``(2, B, h, H', W', d)`` with what lies on the map's far side."""
    for dim in (4, 3):
        size = padded.shape[dim] - 2 * margin
        padded.narrow(dim, 0, margin).copy_(padded.narrow(dim, size, margin))
        padded.narrow(dim, margin + size, margin).copy_(padded.narrow(dim, margin, margin))


def unwrap(padded: Tensor, margin: int) -> None:
    """Add the margin to the map's far side: the transpose of ``wrap``."""
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

    ``kv`` holds one map per key group. All are views of what the caller gave.
    """

    q: Tensor
    kv: list[Tensor]

    @classmethod
    def of(cls, qkv: Tensor, coarse_kv: Sequence[Tensor], heads: int, window_size: int) -> 'Maps':
        """View the public function's arguments, or their gradients."""
        fine = split_heads(qkv, heads, 3)
        coarse = [split_heads(level, heads, 2) for level in coarse_kv]
        return cls(split_windows(fine[0], window_size), [fine[1:], *coarse])


class Tile(NamedTuple):
    """The windows that are computed at a time."""

    images: slice
    heads: slice
    rows: slice
    cols: slice

    @property
    def shape(self) -> tuple[int, ...]:
        """How many there are of each."""
        return tuple(part.stop - part.start for part in self)


class ChunkedAttention:
    """What the tiles of one call share: maps, bias and masks.

    Args:
        qkv: See :func:`mmfocal.ops.focal_attention.focal_attention`; so are the others.
        coarse_kv: Keys and values of each coarse level.
        bias: ``(h, w*w, K)`` from ``merged_bias``; everything is computed in its dtype.
        geometry: The key set.
        scale: Factor on the query-key products.
    """

    def __init__(
        self,
        qkv: Tensor,
        coarse_kv: Sequence[Tensor],
        bias: Tensor,
        geometry: FocalGeometry,
        scale: float,
    ) -> None:
        self.bias, self.geometry, self.scale = bias, geometry, scale
        self.w, (self.num_heads, self.area, self.num_keys) = geometry.window_size, bias.shape
        self.groups = key_groups(geometry)
        self.maps = Maps.of(qkv, coarse_kv, self.num_heads, self.w)
        self.mask = self._validity_mask()

    def _validity_mask(self) -> Tensor | None:
        """``MASKED`` for coarse keys outside their map, else 0: ``(nH, nW, 1, K)``."""
        nh, nw = self.maps.q.shape[2:4]
        unshifted = replace(self.geometry, shift_size=0)  # for the seam see _add_seam
        mask = merged_mask(unshifted, nh * self.w, nw * self.w, self.bias.device)
        return None if mask is None else mask.to(self.bias).view(nh, nw, 1, self.num_keys)

    def planes_and_tiles(self) -> Iterator[tuple[slice, slice, list[Tile]]]:
        """Images and heads whose maps are laid out together, and the tiles of these maps."""
        batch, heads, nh, nw = self.maps.q.shape[:4]
        tile_size = TILE_BYTES // (self.bias[0].numel() * self.bias.element_size())
        rows_and_cols = [
            (rows, cols)
            for rows in cpu.spans(nh, tile_size // nw)
            for cols in cpu.spans(nw, tile_size)
        ]
        for image_span in cpu.spans(batch, tile_size // (nh * nw * heads)):
            for head_span in cpu.spans(heads, tile_size // (nh * nw)):
                tiles = [Tile(image_span, head_span, *place) for place in rows_and_cols]
                yield image_span, head_span, tiles

    def _take(self, name: str, *shape: int) -> Tensor:
        return cpu.scratch(name, shape, self.bias)

    def padded_maps(self, name: str, images: slice, heads: slice) -> list[Tensor]:
        """Uninitialised workspaces ``(2, B, h, H', W', d)``, one per key group."""
        maps = []
        for i, (group, kv) in enumerate(zip(self.groups, self.maps.kv)):
            *planes, rows, cols, d = kv[:, images, heads].shape
            size = (rows + 2 * group.margin, cols + 2 * group.margin)
            maps.append(self._take(f'{name} {i}', *planes, *size, d))
        return maps

    def load_maps(self, images: slice, heads: slice) -> list[Tensor]:
        """Padded maps of keys and values: the fine one wrapped, coarse ones with zeros around."""
        fine, *coarse = maps = self.padded_maps('maps', images, heads)
        for padded in coarse:
            padded.zero_()
        for group, kv, padded in zip(self.groups, self.maps.kv, maps):
            group.interior(padded).copy_(kv[:, images, heads])
        wrap(fine, self.groups[0].margin)
        return maps

    def load_windows(self, name: str, windows: Tensor, tile: Tile) -> Tensor:
        """A tile of ``(B, h, nH, nW, w, w, d)``, copied: ``(n, w*w, d)``."""
        windows = windows[tile]
        copied = self._take(name, *windows.shape).copy_(windows)
        return copied.view(-1, self.area, windows.shape[-1])

    def regions(self, maps: list[Tensor]) -> list[Tensor]:
        """See :meth:`KeyGroup.regions`; one view per key group."""
        return [group.regions(padded) for group, padded in zip(self.groups, maps)]

    def load_keys(self, regions: list[Tensor], tile: Tile) -> Tensor:
        """Keys and values of a tile: ``(2, n, K, d)``."""
        keys = self._take('keys', 2, *tile.shape, self.num_keys, self.maps.q.shape[-1])
        for group, source in zip(self.groups, regions):
            # Keys and values apart: each thread then copies the windows that it will multiply.
            for target, part in zip(group.select(keys), source):
                target.copy_(part[:, :, tile.rows, tile.cols])
        return keys.flatten(1, 4)

    def add_keys(self, maps: list[Tensor], keys: Tensor, tile: Tile) -> None:
        """Add ``(2, n, K, d)`` to where ``load_keys`` found it: its transpose."""
        keys = keys.unflatten(1, tile.shape)
        for group, padded in zip(self.groups, maps):
            group.add_regions(padded, group.select(keys), tile.rows, tile.cols)

    def weights(self, q: Tensor, k: Tensor, tile: Tile) -> Tensor:
        """Attention weights of a tile: ``(n, w*w, K)``."""
        logits = self._take('logits', *tile.shape, self.area, self.num_keys)
        bias = self.bias[tile.heads, None, None].expand(*tile.shape, -1, -1)
        if self.mask is None:
            logits.copy_(bias)
        else:
            torch.add(bias, self.mask[tile.rows, tile.cols], out=logits)
        if self.geometry.shift_size:
            self._add_seam(logits, tile)
        logits = logits.flatten(0, 3).baddbmm_(q, k.mT, alpha=self.scale)
        return torch.softmax(logits, dim=-1, out=logits)

    def _add_seam(self, logits: Tensor, tile: Tile) -> None:
        """Mask own keys across the seam, which runs through the last row and column only."""
        w, e = self.w, self.geometry.expand_size
        nh, nw = self.maps.q.shape[2:4]
        rows, cols = (
            (torch.arange(n, device=logits.device)[span] == n - 1).long()
            for n, span in ((nh, tile.rows), (nw, tile.cols))
        )
        seam = seam_mask(self.geometry, 2 * w, 2 * w, logits.device).to(logits)
        square = self.groups[0].select(logits[..., None]).squeeze(-1)
        square[..., e : e + w, e : e + w] += seam.view(2, 2, w * w, w, w)[rows[:, None], cols]

    def forward(self, out: Tensor) -> None:
        """Fill the output ``(B, H, W, C)``."""
        out_windows = split_windows(split_heads(out, self.num_heads, 1)[0], self.w)
        for images, heads, tiles in self.planes_and_tiles():
            regions = self.regions(self.load_maps(images, heads))
            for tile in tiles:
                q = self.load_windows('q', self.maps.q, tile)
                k, v = self.load_keys(regions, tile)
                weights = self.weights(q, k, tile)
                attended = torch.bmm(weights, v, out=self._take('out', *q.shape))
                target = out_windows[tile]
                target.copy_(attended.view(target.shape))

    def backward(
        self, d_out: Tensor, d_qkv: Tensor, d_coarse_kv: Sequence[Tensor], d_bias: Tensor
    ) -> None:
        """Fill the gradients of the maps and of the bias, which the caller has set to zero."""
        d_out = split_windows(split_heads(d_out, self.num_heads, 1)[0], self.w)
        d_q, d_kv = Maps.of(d_qkv, d_coarse_kv, self.num_heads, self.w)
        for images, heads, tiles in self.planes_and_tiles():
            regions = self.regions(self.load_maps(images, heads))
            d_maps = self.padded_maps('gradients of maps', images, heads)
            for d_map in d_maps:
                d_map.zero_()
            for tile in tiles:
                d_keys = self._backward_tile(tile, regions, d_out, d_q, d_bias)
                self.add_keys(d_maps, d_keys, tile)
            unwrap(d_maps[0], self.groups[0].margin)
            for group, target, d_map in zip(self.groups, d_kv, d_maps):
                target[:, images, heads].copy_(group.interior(d_map))

    def _backward_tile(
        self, tile: Tile, regions: list[Tensor], d_out: Tensor, d_q: Tensor, d_bias: Tensor
    ) -> Tensor:
        """Fill the gradient of the queries, add to that of the bias.

        Returns:
            Gradient of keys and values, ``(2, n, K, d)``; scratch memory.
        """
        q = self.load_windows('q', self.maps.q, tile)
        k, v = keys = self.load_keys(regions, tile)
        weights = self.weights(q, k, tile)
        d_attended = self.load_windows('gradient of out', d_out, tile)

        d_weights = self._take('gradient of logits', *weights.shape)
        torch.bmm(d_attended, v.mT, out=d_weights)
        torch.bmm(weights.mT, d_attended, out=v)  # what is not needed any more makes room
        d_logits = torch.ops.aten._softmax_backward_data.out(  # may write over its input
            d_weights, weights, -1, weights.dtype, grad_input=d_weights
        )
        d_queries = d_attended.baddbmm_(d_logits, k, beta=0, alpha=self.scale)
        k.baddbmm_(d_logits.mT, q, beta=0, alpha=self.scale)

        target = d_q[tile]
        target.copy_(d_queries.view(target.shape))
        d_logits = d_logits.view(*tile.shape, *d_logits.shape[1:])
        d_bias[tile.heads].add_(d_logits.flatten(2, 3).sum(2).sum(0))  # both at once is slow
        return keys


class _ChunkedFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        qkv: Tensor,
        bias: Tensor,
        geometry: FocalGeometry,
        scale: float,
        *coarse_kv: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(qkv, bias, *coarse_kv)
        ctx.geometry, ctx.scale = geometry, scale
        return _attend(qkv, coarse_kv, bias, geometry, scale)

    @staticmethod
    def backward(ctx, d_out: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "attn_impl='chunked' has no second derivative (create_graph=True); "
                "choose attn_impl='sdpa'"
            )
        qkv, bias, *coarse_kv = ctx.saved_tensors
        d_qkv, *d_coarse_kv = (
            torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (qkv, *coarse_kv)
        )
        d_bias = torch.zeros_like(bias)
        call = ChunkedAttention(qkv, coarse_kv, bias, ctx.geometry, ctx.scale)
        call.backward(d_out, d_qkv, d_coarse_kv, d_bias)
        return d_qkv, d_bias, None, None, *d_coarse_kv


def _attend(
    qkv: Tensor,
    coarse_kv: Sequence[Tensor],
    bias: Tensor,
    geometry: FocalGeometry,
    scale: float,
) -> Tensor:
    out = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    ChunkedAttention(qkv, coarse_kv, bias, geometry, scale).forward(out)
    return out


def focal_attention(
    qkv: Tensor,
    coarse_kv: tuple[Tensor, ...],
    bias: FocalBias,
    geometry: FocalGeometry,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """See :func:`mmfocal.ops.focal_attention.focal_attention`."""
    merged = merged_bias(bias, geometry)
    return _ChunkedFunction.apply(qkv, merged, geometry, scale, *coarse_kv)
