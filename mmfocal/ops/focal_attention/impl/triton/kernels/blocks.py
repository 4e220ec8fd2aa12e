# SPDX-License-Identifier: Apache-2.0
"""Helpers that the kernels share: regions, windows, and blocks of queries and keys."""

from typing import NamedTuple

import triton
import triton.language as tl

from mmfocal.ops.focal_attention import geometry

from ..columns import ALIGNMENT
from .bundle import bundle

MASKED = tl.constexpr(geometry.MASKED)
ALIGNMENT = tl.constexpr(ALIGNMENT)
LOG2_E = tl.constexpr(1.4426950408889634)
WHOLE_REGION = tl.constexpr(1 << 30)  # block of keys that holds any region
# Avoids recompilation for sizes that are 1 or multiples of 16. `num_sums` and `num_bias` are not
# listed: they are multiples of 16 in practice, which lets masked loads and stores use vectors.
UNSPECIALIZED = [
    'nh', 'nw', 'num_heads', 'expand_size', 'focal_window', 'num_windows', 'windows_per_strip',
    'first_block', 'region_index', 'num_strips', 'num_programs', 'num_tokens', 'map_tokens',
    'batch_tokens',
]  # fmt: skip


@bundle
class Grid(NamedTuple):
    """Windows of a map and the sizes of their regions; see the shape legend."""

    nh: tl.tensor
    nw: tl.tensor
    expand_size: tl.tensor
    focal_window: tl.tensor
    WINDOW_SIZE: tl.constexpr
    FOCAL_LEVEL: tl.constexpr
    SHIFT: tl.constexpr


@bundle
class Heads(NamedTuple):
    """Number of heads, scale of the logits, channels of a head, and the block that holds them."""

    num_heads: tl.tensor
    scale: tl.tensor
    HEAD_DIM: tl.constexpr
    BLOCK_D: tl.constexpr


@bundle
class Tokens(NamedTuple):
    """Tensor of tokens, ``(B, T, channels)``, whose channels are contiguous."""

    ptr: tl.tensor
    stride_image: tl.tensor
    stride_token: tl.tensor


@bundle
class Rows(NamedTuple):
    """Channels of a head in an image: ``(tokens, d)``."""

    ptr: tl.tensor
    stride_token: tl.tensor


@bundle
class Bias(NamedTuple):
    """Combined bias of a head, or its gradient: ``(w*w, columns)``."""

    ptr: tl.tensor
    num_columns: tl.tensor


@bundle
class Region(NamedTuple):
    """``geometry.Region`` with the position of its map.

    Attributes:
        first: First column in the combined bias, see ``columns``.
        first_token: Index of the map's first token among all tokens of an image.
        rows, cols: Size of the map.
    """

    side: tl.tensor
    step: tl.tensor
    margin: tl.tensor
    first: tl.tensor
    is_wrapped: tl.tensor
    first_token: tl.tensor
    rows: tl.tensor
    cols: tl.tensor


@bundle
class Window(NamedTuple):
    """A window: image (64-bit integer), row and column, and whether these are the last."""

    image: tl.tensor
    row: tl.tensor
    col: tl.tensor
    is_last_row: tl.tensor
    is_last_col: tl.tensor


@bundle
class QueryBlock(NamedTuple):
    """A block of queries, the same for all windows: ``(BLOCK_Q,)``.

    Attributes:
        position: Position in the window.
        clamped: The same, but queries beyond the window have the window's last position.
        exists: Whether the query lies in the window.
    """

    position: tl.tensor
    clamped: tl.tensor
    exists: tl.tensor


@bundle
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


@bundle
class Keys(NamedTuple):
    """Keys and values of a block in a window; zeros unless they lie on the map.

    Attributes:
        k, v: ``(BLOCK_K, BLOCK_D)``.
        tokens, on_map: Tokens and whether they lie on the map, ``(BLOCK_K,)``.
    """

    k: tl.tensor
    v: tl.tensor
    tokens: tl.tensor
    on_map: tl.tensor


@triton.jit
def count_columns(region):
    """Return the number of columns of the combined bias up to the end of a region."""
    return region.first + tl.cdiv(region.side * region.side, ALIGNMENT) * ALIGNMENT


@triton.jit
def fine_region(grid):
    zero = grid.nh * 0
    return Region(
        side=grid.WINDOW_SIZE + 2 * grid.expand_size,
        step=zero + grid.WINDOW_SIZE,
        margin=grid.expand_size + zero,
        first=zero,
        is_wrapped=zero == 0,
        first_token=zero,
        rows=grid.nh * grid.WINDOW_SIZE,
        cols=grid.nw * grid.WINDOW_SIZE,
    )


@triton.jit
def coarse_region(previous, condition, grid, LEVEL: tl.constexpr):
    """Return the region of the next coarse level if ``condition``, else the given region."""
    following, tokens = count_columns(previous), previous.rows * previous.cols
    return Region(
        side=tl.where(condition, grid.focal_window + (1 << LEVEL) - 1, previous.side),
        step=tl.where(condition, 1 << LEVEL, previous.step),
        margin=tl.where(condition, grid.focal_window // 2, previous.margin),
        first=tl.where(condition, following, previous.first),
        is_wrapped=previous.is_wrapped & (condition == 0),
        first_token=tl.where(condition, previous.first_token + tokens, previous.first_token),
        rows=tl.where(condition, grid.nh << LEVEL, previous.rows),
        cols=tl.where(condition, grid.nw << LEVEL, previous.cols),
    )


@triton.jit
def find_region(block, grid, BLOCK_K: tl.constexpr):
    """Return the region of a block of keys and the index of the region's first block.

    Blocks of all regions are numbered consecutively. With ``WHOLE_REGION``, each region is one
    block.
    """
    region, first = fine_region(grid), block * 0
    for level in tl.static_range(grid.FOCAL_LEVEL - 1):
        following = first + tl.cdiv(region.side * region.side, BLOCK_K)
        is_further = block >= following
        first = tl.where(is_further, following, first)
        region = coarse_region(region, is_further, grid, level)
    return region, first


@triton.jit
def count_blocks(grid, BLOCK_K: tl.constexpr):
    """Return the number of key blocks of all regions."""
    last, first = find_region(grid.nh * 0 + WHOLE_REGION, grid, BLOCK_K)
    return first + tl.cdiv(last.side * last.side, BLOCK_K)


@triton.jit
def find_key_block(number, grid, BLOCK_K: tl.constexpr):
    """Return a block of keys by its index among the blocks of all regions."""
    region, first = find_region(number, grid, BLOCK_K)
    position = (number - first) * BLOCK_K + tl.arange(0, BLOCK_K)
    return KeyBlock(
        region=region,
        column=region.first + position,
        row=position // region.side - region.margin,
        col=position % region.side - region.margin,
        exists=position < region.side * region.side,
    )


@triton.jit
def find_query_block(first, grid, BLOCK_Q: tl.constexpr):
    """Return the block of queries that begins at a position of the window."""
    AREA: tl.constexpr = grid.WINDOW_SIZE * grid.WINDOW_SIZE
    position = first + tl.arange(0, BLOCK_Q)
    return QueryBlock(position, clamped=tl.minimum(position, AREA - 1), exists=position < AREA)


@triton.jit
def find_keys(block, window):
    """Return the tokens of a block of keys in a window, and which of them lie on the map."""
    region = block.region
    row = window.row * region.step + block.row
    col = window.col * region.step + block.col
    inside = (row >= 0) & (row < region.rows) & (col >= 0) & (col < region.cols)
    # one wrap suffices: expand_size <= window_size <= map
    row = tl.where(row < 0, row + region.rows, row)
    row = tl.where(row < region.rows, row, row - region.rows)
    col = tl.where(col < 0, col + region.cols, col)
    col = tl.where(col < region.cols, col, col - region.cols)
    token = region.first_token + row * region.cols + col
    return token, block.exists & (inside | region.is_wrapped)


@triton.jit
def window_at(image, row, col, grid):
    """Return a window by its position."""
    is_last_row, is_last_col = row == grid.nh - 1, col == grid.nw - 1
    return Window(image, row, col, is_last_row, is_last_col)


@triton.jit
def locate(number, grid):
    """Return a window by its index over all images."""
    image = (number // (grid.nh * grid.nw)).to(tl.int64)
    return window_at(image, number // grid.nw % grid.nh, number % grid.nw, grid)


@triton.jit
def query_tokens(queries, window, grid):
    """Return the tokens of a block of queries in a window: ``(BLOCK_Q,)``."""
    row = window.row * grid.WINDOW_SIZE + queries.clamped // grid.WINDOW_SIZE
    col = window.col * grid.WINDOW_SIZE + queries.clamped % grid.WINDOW_SIZE
    return row * (grid.nw * grid.WINDOW_SIZE) + col


@triton.jit
def rows_of(tensor, image, head, PART: tl.constexpr, heads):
    """Return the rows of a head; queries, keys and values are parts 0, 1 and 2 of the channels."""
    first = tensor.ptr + image * tensor.stride_image + head * heads.HEAD_DIM
    return Rows(first + PART * (heads.num_heads * heads.HEAD_DIM), tensor.stride_token)


@triton.jit
def channels_of(rows, tokens, heads):
    """Return pointers to the channels of tokens: ``(tokens, BLOCK_D)``."""
    return rows.ptr + tokens[:, None] * rows.stride_token + tl.arange(0, heads.BLOCK_D)[None, :]


@triton.jit
def channel_mask(exist, heads):
    """Return the mask of ``(tokens, BLOCK_D)``; channels are masked only if d < BLOCK_D."""
    mask = exist[:, None]
    if heads.HEAD_DIM < heads.BLOCK_D:
        mask = mask & (tl.arange(0, heads.BLOCK_D) < heads.HEAD_DIM)[None, :]
    return mask


@triton.jit
def load_rows(rows, tokens, exist, heads):
    """Load the channels of tokens, zeros where none exists: ``(tokens, BLOCK_D)``."""
    mask = channel_mask(exist, heads)
    return tl.load(channels_of(rows, tokens, heads), mask=mask, other=0.0)


@triton.jit
def store_rows(rows, tokens, values, exist, heads):
    """Store rows as ``load_rows`` loads them, in the dtype of the pointer."""
    mask = channel_mask(exist, heads)
    values = values.to(rows.ptr.dtype.element_ty)
    tl.store(channels_of(rows, tokens, heads), values, mask=mask)


@triton.jit
def add_rows(rows, tokens, values, exist, heads):
    """Add rows atomically."""
    mask = channel_mask(exist, heads)
    values = values.to(rows.ptr.dtype.element_ty)
    tl.atomic_add(channels_of(rows, tokens, heads), values, mask=mask, sem='relaxed')


@triton.jit
def load_keys(qkv, tokens, on_map, image, head, heads):
    """Load the keys and values of tokens of an image; see ``Keys``."""
    k = load_rows(rows_of(qkv, image, head, 1, heads), tokens, on_map, heads)
    v = load_rows(rows_of(qkv, image, head, 2, heads), tokens, on_map, heads)
    return Keys(k, v, tokens, on_map)


@triton.jit
def sum_pointers(ptr, tokens, image, head, grid, heads):
    """Return pointers to values per query and head, ``(B, h, H, W)``."""
    map_tokens = grid.nh * grid.nw * (grid.WINDOW_SIZE * grid.WINDOW_SIZE)
    return ptr + (image * heads.num_heads + head) * map_tokens + tokens


@triton.jit
def bias_of(ptr, head, grid):
    """Return the bias of a head."""
    last, _ = find_region(grid.nh * 0 + (grid.FOCAL_LEVEL - 1), grid, WHOLE_REGION)
    num_columns = count_columns(last)
    return Bias(ptr + head * (grid.WINDOW_SIZE * grid.WINDOW_SIZE) * num_columns, num_columns)


@triton.jit
def bias_pointers(bias, query, keys):
    """Return pointers into the bias of a head: ``(BLOCK_Q, BLOCK_K)``."""
    return bias.ptr + query[:, None] * bias.num_columns + keys.column[None, :]


@triton.jit
def load_bias(bias, queries, keys):
    """Load the bias of a head in base 2; it is ``NO_KEY`` for padding keys.

    No mask is needed, because blocks of keys divide ``ALIGNMENT``.
    """
    return tl.load(bias_pointers(bias, queries.clamped, keys)) * LOG2_E


@triton.jit
def key_mask(on_map):
    """Return the mask to add to logits for keys outside the map, in base 2: ``(BLOCK_K,)``."""
    return tl.where(on_map, 0.0, MASKED * LOG2_E)


@triton.jit
def seam_mask(query, keys, window, grid):
    """Return the mask for window keys across the seam, in base 2: ``(BLOCK_Q, BLOCK_K)``.

    The seam crosses the last windows only; see ``geometry.seam_mask``.
    """
    WINDOW_SIZE: tl.constexpr = grid.WINDOW_SIZE
    is_own = (keys.row >= 0) & (keys.row < WINDOW_SIZE) & keys.region.is_wrapped
    is_own = is_own & (keys.col >= 0) & (keys.col < WINDOW_SIZE)
    SEAM: tl.constexpr = WINDOW_SIZE - grid.SHIFT  # rows and columns before it
    other_row = (query // WINDOW_SIZE >= SEAM)[:, None] != (keys.row >= SEAM)[None, :]
    other_col = (query % WINDOW_SIZE >= SEAM)[:, None] != (keys.col >= SEAM)[None, :]
    is_beyond = (window.is_last_row & other_row) | (window.is_last_col & other_col)
    return tl.where(is_own[None, :] & is_beyond, MASKED * LOG2_E, 0.0)


@triton.jit
def add_dot(acc, a, b):
    """Return ``acc + a @ b``, with ``a`` rounded to the dtype of ``b``."""
    return tl.dot(a.to(b.dtype), b, acc, input_precision='ieee', out_dtype=acc.dtype)
