# SPDX-License-Identifier: Apache-2.0
"""Kernels that compute the tokens of a map and of its coarse maps, and their gradients.

The map is padded with zeros on the bottom and right to whole windows, and rolled by ``-shift``;
*positions* are those of the padded and rolled map. Blocks are ``(BLOCK_P, BLOCK_C)``: positions of
a window or of a cell, and channels.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .bundle import bundle

# These differ between stages and images, which share one kernel.
UNSPECIALIZED = [
    'height', 'width', 'nh', 'nw', 'shift', 'num_tokens', 'num_items', 'items_per_strip',
]  # fmt: skip


@bundle
class Layout(NamedTuple):
    """Sizes of a map, of its windows and tokens, and of blocks.

    Attributes:
        FOCAL_LEVEL: Number of levels, the fine one too.
        ACCUMULATOR: Dtype of sums.
    """

    height: tl.tensor
    width: tl.tensor
    nh: tl.tensor
    nw: tl.tensor
    shift: tl.tensor
    num_tokens: tl.tensor
    channels: tl.tensor
    WINDOW_SIZE: tl.constexpr
    FOCAL_LEVEL: tl.constexpr
    BLOCK_P: tl.constexpr
    BLOCK_C: tl.constexpr
    ACCUMULATOR: tl.constexpr


@bundle
class Pooling(NamedTuple):
    """Weights, ``(p*p,)``, and bias of each level; any pointers for missing levels."""

    weights: tuple
    biases: tuple


@bundle
class Item(NamedTuple):
    """Image (64-bit integer), row and column of a window; a block of channels ``(BLOCK_C,)``."""

    image: tl.tensor
    row: tl.tensor
    col: tl.tensor
    channel: tl.tensor


@triton.jit
def _source(row, col, exists, layout):
    """Return the offset of a position on the unpadded map, and whether it is not padding."""
    row += layout.shift
    col += layout.shift
    row = tl.where(row < layout.nh * layout.WINDOW_SIZE, row, row - layout.nh * layout.WINDOW_SIZE)
    col = tl.where(col < layout.nw * layout.WINDOW_SIZE, col, col - layout.nw * layout.WINDOW_SIZE)
    return row * layout.width + col, exists & (row < layout.height) & (col < layout.width)


@triton.jit
def _rows(ptr, offsets, channel, layout):
    """Return pointers to channels of tokens: ``(BLOCK_P, BLOCK_C)``."""
    return ptr + offsets[:, None] * layout.channels + channel[None, :]


@triton.jit
def _locate(number, layout):
    """Return an item by its index over all images."""
    blocks = (layout.channels + layout.BLOCK_C - 1) // layout.BLOCK_C
    window = number // blocks
    return Item(
        image=(window // (layout.nh * layout.nw)).to(tl.int64),
        row=window // layout.nw % layout.nh,
        col=window % layout.nw,
        channel=number % blocks * layout.BLOCK_C + tl.arange(0, layout.BLOCK_C),
    )


@triton.jit
def _image(ptr, item, layout):
    """Return the pointer to a map in a batch."""
    return ptr + item.image * layout.height * layout.width * layout.channels


@triton.jit
def _trimmed(windows, WINDOW_SIZE: tl.constexpr, LEVEL: tl.constexpr):
    """Return the first position of the first cell along an axis, after trimming."""
    CELL: tl.constexpr = WINDOW_SIZE >> LEVEL
    return (windows * WINDOW_SIZE - (windows << LEVEL) * CELL) // 2


@triton.jit
def _first_token(layout, LEVEL: tl.constexpr):
    """Return the first token of a coarse level."""
    CELLS: tl.constexpr = ((1 << (2 * LEVEL)) - 1) // 3  # of a window on all levels before
    return layout.nh * layout.nw * (layout.WINDOW_SIZE * layout.WINDOW_SIZE + CELLS)


@triton.jit
def _cell_positions(cell_row, cell_col, layout, LEVEL: tl.constexpr):
    """Return row and column of a cell's positions, and whether they exist: ``(BLOCK_P,)``."""
    CELL: tl.constexpr = layout.WINDOW_SIZE >> LEVEL
    position = tl.arange(0, layout.BLOCK_P)
    row = _trimmed(layout.nh, layout.WINDOW_SIZE, LEVEL) + cell_row * CELL + position // CELL
    col = _trimmed(layout.nw, layout.WINDOW_SIZE, LEVEL) + cell_col * CELL + position % CELL
    return row, col, position < CELL * CELL


@triton.jit
def _load(ptr, offsets, exists, channel, layout):
    """Load channels of tokens, zeros where none exists: ``(BLOCK_P, BLOCK_C)``."""
    mask = exists[:, None] & (channel < layout.channels)[None, :]
    return tl.load(_rows(ptr, offsets, channel, layout), mask=mask, other=0.0)


@triton.jit
def _cell(x_ptr, cell_row, cell_col, channel, layout, LEVEL: tl.constexpr):
    """Return a cell of a coarse level from the map; padding is zeros."""
    row, col, exists = _cell_positions(cell_row, cell_col, layout, LEVEL)
    offsets, inside = _source(row, col, exists, layout)
    return _load(x_ptr, offsets, inside, channel, layout)


@triton.jit
def _token_cell(tokens_ptr, cell_row, cell_col, channel, layout, LEVEL: tl.constexpr):
    """Return the same from the tokens of the padded and rolled map."""
    row, col, exists = _cell_positions(cell_row, cell_col, layout, LEVEL)
    return _load(tokens_ptr, row * (layout.nw * layout.WINDOW_SIZE) + col, exists, channel, layout)


@triton.jit
def _copy_window(x_ptr, tokens_ptr, item, layout):
    """Write the tokens of a window of the map."""
    # the window is the cell of level 0, even if that level does not exist
    x = _cell(x_ptr, item.row, item.col, item.channel, layout, 0)
    position = tl.arange(0, layout.BLOCK_P)
    row = item.row * layout.WINDOW_SIZE + position // layout.WINDOW_SIZE
    col = item.col * layout.WINDOW_SIZE + position % layout.WINDOW_SIZE
    mask = (position < layout.WINDOW_SIZE * layout.WINDOW_SIZE)[:, None]
    mask = mask & (item.channel < layout.channels)[None, :]
    token = row * (layout.nw * layout.WINDOW_SIZE) + col
    pointers = _rows(tokens_ptr, token, item.channel, layout)
    tl.store(pointers, x.to(tokens_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _pool_level(x_ptr, tokens_ptr, pooling, item, layout, LEVEL: tl.constexpr):
    """Write the ``2^k x 2^k`` coarse tokens of a window."""
    CELLS: tl.constexpr = 1 << LEVEL
    position, channel = tl.arange(0, layout.BLOCK_P), item.channel
    is_weight = position < (layout.WINDOW_SIZE >> LEVEL) * (layout.WINDOW_SIZE >> LEVEL)
    weight = tl.load(pooling.weights[LEVEL] + position, mask=is_weight, other=0.0)
    weight = weight.to(layout.ACCUMULATOR)
    bias = tl.load(pooling.biases[LEVEL]).to(layout.ACCUMULATOR)
    for cell in range(CELLS * CELLS):
        row = item.row * CELLS + cell // CELLS
        col = item.col * CELLS + cell % CELLS
        x = _cell(x_ptr, row, col, channel, layout, LEVEL).to(layout.ACCUMULATOR)
        pooled = tl.sum(x * weight[:, None], 0) + bias
        token = _first_token(layout, LEVEL) + row * (layout.nw * CELLS) + col
        pointers = tokens_ptr + token * layout.channels + channel
        values = pooled.to(tokens_ptr.dtype.element_ty)
        tl.store(pointers, values, mask=channel < layout.channels)


@triton.jit
def _pool(x_ptr, tokens_ptr, pooling, layout):
    """Write the tokens of a window on all maps; see ``pool_kernel``."""
    item = _locate(tl.program_id(0), layout)
    x_ptr = _image(x_ptr, item, layout)
    tokens_ptr += item.image * layout.num_tokens * layout.channels
    _copy_window(x_ptr, tokens_ptr, item, layout)
    for level in tl.static_range(layout.FOCAL_LEVEL - 1):
        _pool_level(x_ptr, tokens_ptr, pooling, item, layout, level)


@triton.jit(do_not_specialize=UNSPECIALIZED)
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
    # numbers
    height,
    width,
    nh,
    nw,
    shift,
    num_tokens,
    channels,
    # constants
    IS_DOUBLE: tl.constexpr,  # float64 maps, sums and parameters
    WINDOW_SIZE: tl.constexpr,
    FOCAL_LEVEL: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the tokens of a map and its coarse maps. Programs: (B, N, blocks of channels)."""
    ACCUMULATOR: tl.constexpr = tl.float64 if IS_DOUBLE else tl.float32
    weights = (weight_0_ptr, weight_1_ptr, weight_2_ptr)
    biases = (bias_0_ptr, bias_1_ptr, bias_2_ptr)
    _pool(
        x_ptr,
        tokens_ptr,
        Pooling(weights, biases),
        Layout(
            height, width, nh, nw, shift, num_tokens, channels,
            WINDOW_SIZE, FOCAL_LEVEL, BLOCK_P, BLOCK_C, ACCUMULATOR,
        ),
    )  # fmt: skip


@bundle
class Positions(NamedTuple):
    """Positions of a window: rows and columns, ``(BLOCK_P,)``, and the mask of their channels."""

    row: tl.tensor
    col: tl.tensor
    mask: tl.tensor


@bundle
class Gradients(NamedTuple):
    """Pointers of the backward kernel; see ``pool_backward_kernel``."""

    d_tokens_ptr: tl.tensor
    tokens_ptr: tl.tensor
    d_x_ptr: tl.tensor
    weights: tuple
    sums_ptr: tl.tensor


@triton.jit
def _cell_share(d_tokens_ptr, weight_ptr, positions, channel, layout, LEVEL: tl.constexpr):
    """Return the gradient of positions through their coarse token: ``(BLOCK_P, BLOCK_C)``."""
    CELL: tl.constexpr = layout.WINDOW_SIZE >> LEVEL
    row = positions.row - _trimmed(layout.nh, layout.WINDOW_SIZE, LEVEL)
    col = positions.col - _trimmed(layout.nw, layout.WINDOW_SIZE, LEVEL)
    cell_row, cell_col, cells = row // CELL, col // CELL, layout.nw << LEVEL
    pooled = (row >= 0) & (cell_row < layout.nh << LEVEL) & (col >= 0) & (cell_col < cells)
    token = _first_token(layout, LEVEL) + cell_row * cells + cell_col
    mask = positions.mask & pooled[:, None]
    d_pooled = tl.load(_rows(d_tokens_ptr, token, channel, layout), mask=mask, other=0.0)
    weight = tl.load(weight_ptr + row % CELL * CELL + col % CELL, mask=pooled, other=0.0)
    return weight.to(layout.ACCUMULATOR)[:, None] * d_pooled.to(layout.ACCUMULATOR)


@triton.jit
def _map_gradient(pointers, item, layout):
    """Write the gradient of a window of the map, except for padding."""
    position, channel = tl.arange(0, layout.BLOCK_P), item.channel
    row = item.row * layout.WINDOW_SIZE + position // layout.WINDOW_SIZE
    col = item.col * layout.WINDOW_SIZE + position % layout.WINDOW_SIZE
    offsets, inside = _source(row, col, position < layout.WINDOW_SIZE * layout.WINDOW_SIZE, layout)
    mask = inside[:, None] & (channel < layout.channels)[None, :]
    positions = Positions(row, col, mask)
    d_tokens_ptr = pointers.d_tokens_ptr + item.image * layout.num_tokens * layout.channels
    own = _rows(d_tokens_ptr, row * (layout.nw * layout.WINDOW_SIZE) + col, channel, layout)
    d_x = tl.load(own, mask=mask, other=0.0).to(layout.ACCUMULATOR)
    for level in tl.static_range(layout.FOCAL_LEVEL - 1):
        weight_ptr = pointers.weights[level]
        d_x += _cell_share(d_tokens_ptr, weight_ptr, positions, channel, layout, level)
    rows = _rows(_image(pointers.d_x_ptr, item, layout), offsets, channel, layout)
    tl.store(rows, d_x.to(pointers.d_x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _level_gradient(pointers, sums_ptr, begin, end, layout, LEVEL: tl.constexpr):
    """Write a strip's gradients of a level's weights, followed by that of its bias."""
    CELLS: tl.constexpr = 1 << LEVEL
    d_weight = tl.zeros((layout.BLOCK_P,), layout.ACCUMULATOR)
    d_bias = tl.zeros((layout.BLOCK_C,), layout.ACCUMULATOR)
    for number in range(begin, end):
        item = _locate(number, layout)
        channel, first = item.channel, item.image * layout.num_tokens
        tokens_ptr = pointers.tokens_ptr + first * layout.channels
        for cell in range(CELLS * CELLS):
            row = item.row * CELLS + cell // CELLS
            col = item.col * CELLS + cell % CELLS
            token = _first_token(layout, LEVEL) + row * (layout.nw * CELLS) + col
            rows = pointers.d_tokens_ptr + (first + token) * layout.channels + channel
            d_pooled = tl.load(rows, mask=channel < layout.channels, other=0.0)
            d_pooled = d_pooled.to(layout.ACCUMULATOR)
            x = _token_cell(tokens_ptr, row, col, channel, layout, LEVEL)
            d_weight += tl.sum(x.to(layout.ACCUMULATOR) * d_pooled[None, :], 1)
            d_bias += d_pooled
    AREA: tl.constexpr = (layout.WINDOW_SIZE >> LEVEL) * (layout.WINDOW_SIZE >> LEVEL)
    position = tl.arange(0, layout.BLOCK_P)
    tl.store(sums_ptr + position, d_weight, mask=position < AREA)
    tl.store(sums_ptr + AREA, tl.sum(d_bias, 0))


@triton.jit
def _pool_backward(pointers, num_items, items_per_strip, layout, NUM_SUMS: tl.constexpr):
    """Write the gradients of a strip; see ``pool_backward_kernel``."""
    begin = tl.program_id(0) * items_per_strip
    end = tl.minimum(begin + items_per_strip, num_items)
    for number in range(begin, end):
        _map_gradient(pointers, _locate(number, layout), layout)
    sums_ptr = pointers.sums_ptr + tl.program_id(0) * NUM_SUMS
    for level in tl.static_range(layout.FOCAL_LEVEL - 1):
        _level_gradient(pointers, sums_ptr, begin, end, layout, level)
        sums_ptr += (layout.WINDOW_SIZE >> level) * (layout.WINDOW_SIZE >> level) + 1


@triton.jit(do_not_specialize=UNSPECIALIZED)
def pool_backward_kernel(
    # gradient of the tokens; tokens; gradient of the map, written; weights of each level;
    # gradients of the weights and the bias of each level after the other, by strips, written:
    # (strips, ...)
    d_tokens_ptr,
    tokens_ptr,
    d_x_ptr,
    weight_0_ptr,
    weight_1_ptr,
    weight_2_ptr,
    sums_ptr,
    # numbers
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
    WINDOW_SIZE: tl.constexpr,
    FOCAL_LEVEL: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write all gradients. Programs: strips of (B, N, blocks of channels)."""
    ACCUMULATOR: tl.constexpr = tl.float64 if IS_DOUBLE else tl.float32
    weights = (weight_0_ptr, weight_1_ptr, weight_2_ptr)
    _pool_backward(
        Gradients(d_tokens_ptr, tokens_ptr, d_x_ptr, weights, sums_ptr),
        num_items,
        items_per_strip,
        Layout(
            height, width, nh, nw, shift, num_tokens, channels,
            WINDOW_SIZE, FOCAL_LEVEL, BLOCK_P, BLOCK_C, ACCUMULATOR,
        ),
        NUM_SUMS,
    )  # fmt: skip
