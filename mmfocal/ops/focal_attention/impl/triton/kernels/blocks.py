# SPDX-License-Identifier: Apache-2.0
"""Helpers that the kernels share: regions, windows, and blocks of queries and keys."""

from typing import NamedTuple

import triton
import triton.language as tl

from mmfocal.ops.focal_attention import geometry

from ..columns import ALIGNMENT

MASKED = tl.constexpr(geometry.MASKED)
ALIGNMENT = tl.constexpr(ALIGNMENT)
LOG2_E = tl.constexpr(1.4426950408889634)
# Avoids recompilation for sizes that are 1 or multiples of 16.
SIZES = [
    'nh', 'nw', 'num_heads', 'expand_size', 'focal_window', 'num_windows', 'windows_per_strip',
    'first_block', 'region', 'strips', 'size', 'area', 'programs', 'tokens',
]  # fmt: skip


class Region(NamedTuple):
    """``geometry.Region`` with the position of its map.

    Attributes:
        first: First column in the combined bias, see ``columns``.
        first_token: Index of the map's first token among all tokens of an image.
        rows, cols: Size of the map.
    """

    size: tl.tensor
    step: tl.tensor
    margin: tl.tensor
    first: tl.tensor
    is_wrapped: tl.tensor
    first_token: tl.tensor
    rows: tl.tensor
    cols: tl.tensor


class Window(NamedTuple):
    """A window: image (64-bit integer), row and column, and whether these are the last."""

    image: tl.tensor
    row: tl.tensor
    col: tl.tensor
    is_last_row: tl.tensor
    is_last_col: tl.tensor


class KeyBlock(NamedTuple):
    """A block of keys of a region, the same for all windows.

    Attributes:
        region: Its region.
        column: Column of the combined bias, ``(BLOCK_K,)`` like all following attributes.
        row, col: Position relative to the window's first token.
        exists: Whether the key exists; false for padding.
    """

    region: Region
    column: tl.tensor
    row: tl.tensor
    col: tl.tensor
    exists: tl.tensor


@triton.jit
def count_columns(region):
    """Return the number of columns of the combined bias up to the end of a region."""
    return region.first + tl.cdiv(region.size * region.size, ALIGNMENT) * ALIGNMENT


@triton.jit
def fine_region(nh, nw, expand_size, WINDOW: tl.constexpr):
    zero = nh * 0
    return Region(
        size=WINDOW + 2 * expand_size,
        step=zero + WINDOW,
        margin=expand_size + zero,
        first=zero,
        is_wrapped=zero == 0,
        first_token=zero,
        rows=nh * WINDOW,
        cols=nw * WINDOW,
    )


@triton.jit
def coarse_region(previous, condition, nh, nw, focal_window, LEVEL: tl.constexpr):
    """Return the region of the next coarse level if ``condition``, else the given region."""
    following, tokens = count_columns(previous), previous.rows * previous.cols
    return Region(
        size=tl.where(condition, focal_window + (1 << LEVEL) - 1, previous.size),
        step=tl.where(condition, 1 << LEVEL, previous.step),
        margin=tl.where(condition, focal_window // 2, previous.margin),
        first=tl.where(condition, following, previous.first),
        is_wrapped=previous.is_wrapped & (condition == 0),
        first_token=tl.where(condition, previous.first_token + tokens, previous.first_token),
        rows=tl.where(condition, nh << LEVEL, previous.rows),
        cols=tl.where(condition, nw << LEVEL, previous.cols),
    )


@triton.jit
def region_at(
    place, nh, nw, expand_size, focal_window, WINDOW: tl.constexpr, COARSE_LEVELS: tl.constexpr
):
    """Return a region by its index in ``geometry.regions``."""
    region = fine_region(nh, nw, expand_size, WINDOW)
    for level in tl.static_range(COARSE_LEVELS):
        region = coarse_region(region, place > level, nh, nw, focal_window, level)
    return region


@triton.jit
def count_blocks(
    expand_size,
    focal_window,
    WINDOW: tl.constexpr,
    COARSE_LEVELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return the number of key blocks of all regions."""
    size = WINDOW + 2 * expand_size
    blocks = tl.cdiv(size * size, BLOCK_K)
    for level in tl.static_range(COARSE_LEVELS):
        size = focal_window + (1 << level) - 1
        blocks += tl.cdiv(size * size, BLOCK_K)
    return blocks


@triton.jit
def key_block(
    block,
    nh,
    nw,
    expand_size,
    focal_window,
    WINDOW: tl.constexpr,
    COARSE_LEVELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return a block of keys by its index among the blocks of all regions."""
    region = fine_region(nh, nw, expand_size, WINDOW)
    first = block * 0
    for level in tl.static_range(COARSE_LEVELS):
        following = first + tl.cdiv(region.size * region.size, BLOCK_K)
        is_further = block >= following
        first = tl.where(is_further, following, first)
        region = coarse_region(region, is_further, nh, nw, focal_window, level)
    place = (block - first) * BLOCK_K + tl.arange(0, BLOCK_K)
    return KeyBlock(
        region=region,
        column=region.first + place,
        row=place // region.size - region.margin,
        col=place % region.size - region.margin,
        exists=place < region.size * region.size,
    )


@triton.jit
def find_keys(keys, window):
    """Return the tokens of a block of keys of a window, and which of them lie on the map."""
    region = keys.region
    row = window.row * region.step + keys.row
    col = window.col * region.step + keys.col
    inside = (row >= 0) & (row < region.rows) & (col >= 0) & (col < region.cols)
    # one wrap suffices: expand_size <= window_size <= map
    row = tl.where(row < 0, row + region.rows, row)
    row = tl.where(row < region.rows, row, row - region.rows)
    col = tl.where(col < 0, col + region.cols, col)
    col = tl.where(col < region.cols, col, col - region.cols)
    token = region.first_token + row * region.cols + col
    return token, keys.exists & (inside | region.is_wrapped)


@triton.jit
def locate(number, nh, nw):
    """Return a window by its index over all images."""
    row, col = number // nw % nh, number % nw
    image = (number // (nh * nw)).to(tl.int64)
    return Window(
        image=image, row=row, col=col, is_last_row=row == nh - 1, is_last_col=col == nw - 1
    )


@triton.jit
def query_tokens(query, window, nw, WINDOW: tl.constexpr):
    """Return the tokens of the queries of a window: ``(BLOCK_Q,)``."""
    row = window.row * WINDOW + query // WINDOW
    return row * (nw * WINDOW) + window.col * WINDOW + query % WINDOW


@triton.jit
def channels_of(ptr, tokens, stride, BLOCK_D: tl.constexpr):
    """Return pointers to the channels of a head: ``(tokens, BLOCK_D)``."""
    return ptr + tokens[:, None] * stride + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def channel_mask(exist, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the mask of ``(tokens, BLOCK_D)``; channels are masked only if d < BLOCK_D."""
    mask = exist[:, None]
    if HEAD_DIM < BLOCK_D:
        mask = mask & (tl.arange(0, BLOCK_D) < HEAD_DIM)[None, :]
    return mask


@triton.jit
def load_rows(ptr, tokens, stride, exist, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load the channels of a head for some tokens, zeros elsewhere: ``(tokens, BLOCK_D)``."""
    mask = channel_mask(exist, HEAD_DIM, BLOCK_D)
    return tl.load(channels_of(ptr, tokens, stride, BLOCK_D), mask=mask, other=0.0)


@triton.jit
def store_rows(ptr, tokens, stride, values, exist, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store rows as ``load_rows`` loads them, in the dtype of the pointer."""
    mask = channel_mask(exist, HEAD_DIM, BLOCK_D)
    values = values.to(ptr.dtype.element_ty)
    tl.store(channels_of(ptr, tokens, stride, BLOCK_D), values, mask=mask)


@triton.jit
def add_rows(ptr, tokens, stride, values, exist, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Add rows atomically."""
    mask = channel_mask(exist, HEAD_DIM, BLOCK_D)
    values = values.to(ptr.dtype.element_ty)
    tl.atomic_add(channels_of(ptr, tokens, stride, BLOCK_D), values, mask=mask, sem='relaxed')


@triton.jit
def bias_pointers(ptr, query, keys, num_columns):
    """Return pointers to a head's combined bias, or its gradient: ``(BLOCK_Q, BLOCK_K)``."""
    return ptr + query[:, None] * num_columns + keys.column[None, :]


@triton.jit
def load_bias(bias_ptr, query, keys, num_columns):
    """Load the bias of a head in base 2; it is ``NO_KEY`` for padding keys.

    No mask is needed, because blocks of keys divide ``ALIGNMENT``.
    """
    return tl.load(bias_pointers(bias_ptr, query, keys, num_columns)) * LOG2_E


@triton.jit
def key_mask(on_map):
    """Return the mask to add to logits for keys outside the map, in base 2: ``(BLOCK_K,)``."""
    return tl.where(on_map, 0.0, MASKED * LOG2_E)


@triton.jit
def seam_mask(query, keys, window, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    """Return the mask for window keys across the seam, in base 2: ``(BLOCK_Q, BLOCK_K)``.

    The seam crosses the last windows only; see ``geometry.seam_mask``.
    """
    is_own = (keys.row >= 0) & (keys.row < WINDOW) & (keys.col >= 0) & (keys.col < WINDOW)
    is_own = is_own & keys.region.is_wrapped
    SEAM: tl.constexpr = WINDOW - SHIFT  # rows and columns before it
    other_row = (query // WINDOW >= SEAM)[:, None] != (keys.row >= SEAM)[None, :]
    other_col = (query % WINDOW >= SEAM)[:, None] != (keys.col >= SEAM)[None, :]
    is_beyond = (window.is_last_row & other_row) | (window.is_last_col & other_col)
    return tl.where(is_own[None, :] & is_beyond, MASKED * LOG2_E, 0.0)


@triton.jit
def add_dot(acc, a, b):
    """Return ``acc + a @ b``, with ``a`` rounded to the dtype of ``b``."""
    return tl.dot(a.to(b.dtype), b, acc, input_precision='ieee', out_dtype=acc.dtype)
