# SPDX-License-Identifier: Apache-2.0
"""Kernels that compute the tokens of a map and of its coarse maps, and their gradients.

The map is padded with zeros on the bottom and right to whole windows, and rolled by ``-shift``;
*positions* are those of the padded and rolled map. Blocks are ``(BLOCK_P, BLOCK_C)``: positions of
a window or of a cell, and channels.
"""

import triton
import triton.language as tl

# These differ between stages and images, which share one kernel.
SIZES = ['height', 'width', 'nh', 'nw', 'shift', 'num_items', 'items_per_strip']


@triton.jit
def _source(row, col, exists, height, width, nh, nw, shift, WINDOW: tl.constexpr):
    """Return the offset of a position on the unpadded map, and whether it is not padding."""
    row += shift
    col += shift
    row = tl.where(row < nh * WINDOW, row, row - nh * WINDOW)
    col = tl.where(col < nw * WINDOW, col, col - nw * WINDOW)
    return row * width + col, exists & (row < height) & (col < width)


@triton.jit
def _rows(ptr, offsets, channel, channels):
    """Return pointers to channels of tokens: ``(BLOCK_P, BLOCK_C)``."""
    return ptr + offsets[:, None] * channels + channel[None, :]


@triton.jit
def _locate(item, nh, nw, channels, BLOCK_C: tl.constexpr):
    """Return image (64 bits), row and column of a window, and channels, for an item index."""
    blocks = (channels + BLOCK_C - 1) // BLOCK_C
    window = item // blocks
    channel = item % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    image = window // (nh * nw)
    return image.to(tl.int64), window // nw % nh, window % nw, channel


@triton.jit
def _trimmed(windows, WINDOW: tl.constexpr, LEVEL: tl.constexpr):
    """Return the first position of the first cell along an axis, after trimming."""
    CELL: tl.constexpr = WINDOW >> LEVEL
    return (windows * WINDOW - (windows << LEVEL) * CELL) // 2


@triton.jit
def _cell(
    x_ptr, cell_row, cell_col, channel, height, width, nh, nw, shift, channels,
    WINDOW: tl.constexpr, LEVEL: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Return the tokens of a cell of a coarse level, zeros elsewhere: ``(BLOCK_P, BLOCK_C)``."""
    CELL: tl.constexpr = WINDOW >> LEVEL
    position = tl.arange(0, BLOCK_P)
    row = _trimmed(nh, WINDOW, LEVEL) + cell_row * CELL + position // CELL
    col = _trimmed(nw, WINDOW, LEVEL) + cell_col * CELL + position % CELL
    exists = position < CELL * CELL
    offsets, inside = _source(row, col, exists, height, width, nh, nw, shift, WINDOW)
    mask = inside[:, None] & (channel < channels)[None, :]
    return tl.load(_rows(x_ptr, offsets, channel, channels), mask=mask, other=0.0)


@triton.jit
def _pool_level(
    x_ptr, tokens_ptr, weight_ptr, bias_ptr, first, win_row, win_col, channel,
    height, width, nh, nw, shift, channels,
    ACCUMULATOR: tl.constexpr, WINDOW: tl.constexpr, LEVEL: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Write the ``2^k x 2^k`` coarse tokens of a window; ``first`` is the level's first token."""
    CELLS: tl.constexpr = 1 << LEVEL
    position = tl.arange(0, BLOCK_P)
    is_weight = position < (WINDOW >> LEVEL) * (WINDOW >> LEVEL)
    weight = tl.load(weight_ptr + position, mask=is_weight, other=0.0).to(ACCUMULATOR)
    bias = tl.load(bias_ptr).to(ACCUMULATOR)
    for cell in range(CELLS * CELLS):
        cell_row = win_row * CELLS + cell // CELLS
        cell_col = win_col * CELLS + cell % CELLS
        x = _cell(
            x_ptr, cell_row, cell_col, channel, height, width, nh, nw, shift, channels,
            WINDOW, LEVEL, BLOCK_P,
        ).to(ACCUMULATOR)  # fmt: skip
        pooled = tl.sum(x * weight[:, None], 0) + bias
        token = first + cell_row * (nw * CELLS) + cell_col
        pointers = tokens_ptr + token * channels + channel
        tl.store(pointers, pooled.to(tokens_ptr.dtype.element_ty), mask=channel < channels)


@triton.jit(do_not_specialize=SIZES)
def pool_kernel(
    # map (B, H, W, C); tokens (B, T, C), written; weights (p*p) and bias of each level
    x_ptr,
    tokens_ptr,
    weight_0_ptr,
    weight_1_ptr,
    weight_2_ptr,
    bias_0_ptr,
    bias_1_ptr,
    bias_2_ptr,
    # sizes
    height,
    width,
    nh,
    nw,
    shift,
    num_tokens,
    channels,
    # constants
    IS_DOUBLE: tl.constexpr,  # float64 maps, sums and parameters
    WINDOW: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the tokens of a map and its coarse maps. Programs: (B, N, blocks of channels)."""
    ACCUMULATOR: tl.constexpr = tl.float64 if IS_DOUBLE else tl.float32
    image, win_row, win_col, channel = _locate(tl.program_id(0), nh, nw, channels, BLOCK_C)
    x_ptr += image * height * width * channels
    tokens_ptr += image * num_tokens * channels
    # the window is the cell of level 0, even if that level does not exist
    x = _cell(
        x_ptr, win_row, win_col, channel, height, width, nh, nw, shift, channels,
        WINDOW, 0, BLOCK_P,
    )  # fmt: skip
    position = tl.arange(0, BLOCK_P)
    token = win_row * WINDOW + position // WINDOW
    token = token * (nw * WINDOW) + win_col * WINDOW + position % WINDOW
    mask = (position < WINDOW * WINDOW)[:, None] & (channel < channels)[None, :]
    pointers = _rows(tokens_ptr, token, channel, channels)
    tl.store(pointers, x.to(tokens_ptr.dtype.element_ty), mask=mask)
    windows = nh * nw
    first = windows * (WINDOW * WINDOW)
    if LEVELS > 0:
        _pool_level(
            x_ptr, tokens_ptr, weight_0_ptr, bias_0_ptr, first, win_row, win_col, channel,
            height, width, nh, nw, shift, channels, ACCUMULATOR, WINDOW, 0, BLOCK_P,
        )  # fmt: skip
    if LEVELS > 1:
        _pool_level(
            x_ptr, tokens_ptr, weight_1_ptr, bias_1_ptr, first + windows, win_row, win_col,
            channel, height, width, nh, nw, shift, channels, ACCUMULATOR, WINDOW, 1, BLOCK_P,
        )  # fmt: skip
    if LEVELS > 2:
        _pool_level(
            x_ptr, tokens_ptr, weight_2_ptr, bias_2_ptr, first + 5 * windows, win_row, win_col,
            channel, height, width, nh, nw, shift, channels, ACCUMULATOR, WINDOW, 2, BLOCK_P,
        )  # fmt: skip


@triton.jit
def _cell_share(
    d_tokens_ptr, weight_ptr, first, row, col, mask, channel, nh, nw, channels,
    ACCUMULATOR: tl.constexpr, WINDOW: tl.constexpr, LEVEL: tl.constexpr,
):  # fmt: skip
    """Return the gradient of positions through their coarse token: ``(BLOCK_P, BLOCK_C)``."""
    CELL: tl.constexpr = WINDOW >> LEVEL
    row -= _trimmed(nh, WINDOW, LEVEL)
    col -= _trimmed(nw, WINDOW, LEVEL)
    cell_row, cell_col = row // CELL, col // CELL
    pooled = (row >= 0) & (cell_row < nh << LEVEL) & (col >= 0) & (cell_col < nw << LEVEL)
    token = first + cell_row * (nw << LEVEL) + cell_col
    mask = mask & pooled[:, None]
    d_pooled = tl.load(_rows(d_tokens_ptr, token, channel, channels), mask=mask, other=0.0)
    place = row % CELL * CELL + col % CELL
    weight = tl.load(weight_ptr + place, mask=pooled, other=0.0)
    return weight.to(ACCUMULATOR)[:, None] * d_pooled.to(ACCUMULATOR)


@triton.jit
def _map_gradient(
    d_tokens_ptr, d_x_ptr, weight_0_ptr, weight_1_ptr, weight_2_ptr,
    win_row, win_col, channel, height, width, nh, nw, shift, channels,
    ACCUMULATOR: tl.constexpr, WINDOW: tl.constexpr, LEVELS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a window of the map, except for padding."""
    position = tl.arange(0, BLOCK_P)
    row = win_row * WINDOW + position // WINDOW
    col = win_col * WINDOW + position % WINDOW
    exists = position < WINDOW * WINDOW
    offsets, inside = _source(row, col, exists, height, width, nh, nw, shift, WINDOW)
    mask = inside[:, None] & (channel < channels)[None, :]
    pointers = _rows(d_tokens_ptr, row * (nw * WINDOW) + col, channel, channels)
    d_x = tl.load(pointers, mask=mask, other=0.0).to(ACCUMULATOR)
    windows = nh * nw
    first = windows * (WINDOW * WINDOW)
    if LEVELS > 0:
        d_x += _cell_share(
            d_tokens_ptr, weight_0_ptr, first, row, col, mask, channel, nh, nw, channels,
            ACCUMULATOR, WINDOW, 0,
        )  # fmt: skip
    if LEVELS > 1:
        d_x += _cell_share(
            d_tokens_ptr, weight_1_ptr, first + windows, row, col, mask, channel, nh, nw,
            channels, ACCUMULATOR, WINDOW, 1,
        )  # fmt: skip
    if LEVELS > 2:
        d_x += _cell_share(
            d_tokens_ptr, weight_2_ptr, first + 5 * windows, row, col, mask, channel, nh, nw,
            channels, ACCUMULATOR, WINDOW, 2,
        )  # fmt: skip
    pointers = _rows(d_x_ptr, offsets, channel, channels)
    tl.store(pointers, d_x.to(d_x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _level_gradient(
    d_tokens_ptr, x_ptr, sums_ptr, first, begin, end,
    height, width, nh, nw, shift, num_tokens, channels,
    ACCUMULATOR: tl.constexpr, WINDOW: tl.constexpr, LEVEL: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write a strip's gradients of a level's weights, followed by that of its bias."""
    CELLS: tl.constexpr = 1 << LEVEL
    d_weight = tl.zeros((BLOCK_P,), ACCUMULATOR)
    d_bias = tl.zeros((BLOCK_C,), ACCUMULATOR)
    for item in range(begin, end):
        image, win_row, win_col, channel = _locate(item, nh, nw, channels, BLOCK_C)
        image_ptr = x_ptr + image * height * width * channels
        for cell in range(CELLS * CELLS):
            cell_row = win_row * CELLS + cell // CELLS
            cell_col = win_col * CELLS + cell % CELLS
            token = first + cell_row * (nw * CELLS) + cell_col
            pointers = d_tokens_ptr + (image * num_tokens + token) * channels + channel
            d_pooled = tl.load(pointers, mask=channel < channels, other=0.0).to(ACCUMULATOR)
            x = _cell(
                image_ptr, cell_row, cell_col, channel, height, width, nh, nw, shift, channels,
                WINDOW, LEVEL, BLOCK_P,
            ).to(ACCUMULATOR)  # fmt: skip
            d_weight += tl.sum(x * d_pooled[None, :], 1)
            d_bias += d_pooled
    AREA: tl.constexpr = (WINDOW >> LEVEL) * (WINDOW >> LEVEL)
    position = tl.arange(0, BLOCK_P)
    tl.store(sums_ptr + position, d_weight, mask=position < AREA)
    tl.store(sums_ptr + AREA, tl.sum(d_bias, 0))


@triton.jit(do_not_specialize=SIZES)
def pool_backward_kernel(
    # gradient of the tokens; map; its gradient, written; weights of each level; gradients of the
    # weights and the bias of each level after the other, by strips, written: (strips, ...)
    d_tokens_ptr,
    x_ptr,
    d_x_ptr,
    weight_0_ptr,
    weight_1_ptr,
    weight_2_ptr,
    sums_ptr,
    # sizes
    height,
    width,
    nh,
    nw,
    shift,
    num_tokens,
    channels,
    num_items,
    items_per_strip,
    # constants
    NUM_SUMS: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
    WINDOW: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write all gradients. Programs: strips of (B, N, blocks of channels)."""
    ACCUMULATOR: tl.constexpr = tl.float64 if IS_DOUBLE else tl.float32
    strip = tl.program_id(0)
    begin = strip * items_per_strip
    end = tl.minimum(begin + items_per_strip, num_items)
    for item in range(begin, end):
        image, win_row, win_col, channel = _locate(item, nh, nw, channels, BLOCK_C)
        _map_gradient(
            d_tokens_ptr + image * num_tokens * channels,
            d_x_ptr + image * height * width * channels,
            weight_0_ptr, weight_1_ptr, weight_2_ptr, win_row, win_col, channel,
            height, width, nh, nw, shift, channels, ACCUMULATOR, WINDOW, LEVELS, BLOCK_P,
        )  # fmt: skip
    sums_ptr += strip * NUM_SUMS
    windows = nh * nw
    first = windows * (WINDOW * WINDOW)
    if LEVELS > 0:
        _level_gradient(
            d_tokens_ptr, x_ptr, sums_ptr, first, begin, end,
            height, width, nh, nw, shift, num_tokens, channels,
            ACCUMULATOR, WINDOW, 0, BLOCK_P, BLOCK_C,
        )  # fmt: skip
    sums_ptr += WINDOW * WINDOW + 1
    if LEVELS > 1:
        _level_gradient(
            d_tokens_ptr, x_ptr, sums_ptr, first + windows, begin, end,
            height, width, nh, nw, shift, num_tokens, channels,
            ACCUMULATOR, WINDOW, 1, BLOCK_P, BLOCK_C,
        )  # fmt: skip
    sums_ptr += (WINDOW // 2) * (WINDOW // 2) + 1
    if LEVELS > 2:
        _level_gradient(
            d_tokens_ptr, x_ptr, sums_ptr, first + 5 * windows, begin, end,
            height, width, nh, nw, shift, num_tokens, channels,
            ACCUMULATOR, WINDOW, 2, BLOCK_P, BLOCK_C,
        )  # fmt: skip
