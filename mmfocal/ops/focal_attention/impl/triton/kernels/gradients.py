# SPDX-License-Identifier: Apache-2.0
"""Backward kernels: all gradients in one pass, or those of keys in a fixed order."""

from typing import NamedTuple

import triton
import triton.language as tl

from .blocks import (
    LOG2_E,
    UNSPECIALIZED,
    WHOLE_REGION,
    Grid,
    Heads,
    KeyBlock,
    Rows,
    Tokens,
    add_dot,
    add_rows,
    bias_of,
    bias_pointers,
    count_blocks,
    find_key_block,
    find_keys,
    find_query_block,
    find_region,
    key_mask,
    load_bias,
    load_keys,
    load_rows,
    locate,
    query_tokens,
    rows_of,
    seam_mask,
    store_rows,
    sum_pointers,
    window_at,
)
from .bundle import bundle


@bundle
class Inputs(NamedTuple):
    """Tensors that the gradients are computed from.

    Attributes:
        qkv: ``(B, T, 3C)``.
        bias_ptr: ``(h, w*w, columns)``.
        log_sum_ptr, delta_ptr: ``(B, h, H, W)``.
        d_out_ptr: Gradient of the output, ``(B, H, W, C)``.
    """

    qkv: Tokens
    bias_ptr: tl.tensor
    log_sum_ptr: tl.tensor
    d_out_ptr: tl.tensor
    delta_ptr: tl.tensor


@bundle
class Strips(NamedTuple):
    """Runs of consecutive windows over all images.

    Attributes:
        d_bias_ptr: Their gradients of the bias, written: ``(strips, h, w*w, columns)``.
        num_windows: Number of windows of all images.
        length: Number of windows of a strip; the last one may be shorter.
        first_block: First block of keys of the launch.
        IS_ORDERED: Whether programs share no queries, and keys are left to another kernel.
    """

    d_bias_ptr: tl.tensor
    num_windows: tl.tensor
    length: tl.tensor
    first_block: tl.tensor
    IS_ORDERED: tl.constexpr


@bundle
class Queries(NamedTuple):
    """Data of a block of queries of a window that the gradients need.

    Attributes:
        position: Positions in the window, ``(BLOCK_Q,)``.
        q, d_out: ``(BLOCK_Q, BLOCK_D)``.
        log_sum, delta: ``(BLOCK_Q,)``.
    """

    position: tl.tensor
    q: tl.tensor
    d_out: tl.tensor
    log_sum: tl.tensor
    delta: tl.tensor


@bundle
class Outputs(NamedTuple):
    """Output and its gradient, ``(B, H, W, C)``; sums of their products, ``(B, h, H, W)``.

    Attributes:
        map_tokens: Tokens of the map of an image.
        batch_tokens: Those of all images.
    """

    out_ptr: tl.tensor
    d_out_ptr: tl.tensor
    delta_ptr: tl.tensor
    map_tokens: tl.tensor
    batch_tokens: tl.tensor


@bundle
class Tile(NamedTuple):
    """A square of keys of a map.

    Attributes:
        image: Its image, a 64-bit integer.
        top, left: Position of its first key on the map.
        row, col: Positions of all keys, ``(TILE*TILE,)`` like all following attributes.
        tokens, on_map: Tokens and whether they lie on the map.
    """

    image: tl.tensor
    top: tl.tensor
    left: tl.tensor
    row: tl.tensor
    col: tl.tensor
    tokens: tl.tensor
    on_map: tl.tensor


@triton.jit
def load_queries(inputs, block, window, head, grid, heads):
    """Load a block of queries; the weights of queries beyond the window are zero."""
    tokens, image, exist = query_tokens(block, window, grid), window.image, block.exists
    channels = heads.num_heads * heads.HEAD_DIM
    image_size = grid.nh * grid.nw * (grid.WINDOW_SIZE * grid.WINDOW_SIZE) * channels
    d_out = Tokens(inputs.d_out_ptr, image_size, channels)
    log_sum = sum_pointers(inputs.log_sum_ptr, tokens, image, head, grid, heads)
    delta = sum_pointers(inputs.delta_ptr, tokens, image, head, grid, heads)
    return Queries(
        position=block.position,
        q=load_rows(rows_of(inputs.qkv, image, head, 0, heads), tokens, exist, heads),
        d_out=load_rows(rows_of(d_out, image, head, 0, heads), tokens, exist, heads),
        log_sum=tl.load(log_sum, mask=exist, other=float('inf')),
        delta=tl.load(delta, mask=exist, other=0.0),
    )


@triton.jit
def compute_logit_gradients(queries, keys, block, bias, window, grid, heads):
    """Return weights and gradients of the logits, transposed: both ``(BLOCK_K, BLOCK_Q)``."""
    logits = tl.dot(keys.k, tl.trans(queries.q), input_precision='ieee')
    logits = logits * (heads.scale * LOG2_E) + bias + key_mask(keys.on_map)[:, None]
    if grid.SHIFT > 0:
        logits += tl.trans(seam_mask(queries.position, block, window, grid))
    weights = tl.exp2(logits - queries.log_sum[None, :])
    d_weights = tl.dot(keys.v, tl.trans(queries.d_out), input_precision='ieee')
    return weights, weights * (d_weights - queries.delta[None, :])


@triton.jit
def compute_delta(outputs, program, heads, BLOCK: tl.constexpr):
    """Sum output times its gradient for a block of tokens; see ``prepare_kernel``."""
    head, channels = program % heads.num_heads, heads.num_heads * heads.HEAD_DIM
    token = (program // heads.num_heads).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists, first = token < outputs.batch_tokens, head * heads.HEAD_DIM
    out = load_rows(Rows(outputs.out_ptr + first, channels), token, exists, heads)
    d_out = load_rows(Rows(outputs.d_out_ptr + first, channels), token, exists, heads)
    dtype: tl.constexpr = outputs.delta_ptr.dtype.element_ty
    delta = tl.sum(out.to(dtype) * d_out.to(dtype), 1)
    length = outputs.map_tokens
    offset = (token // length * heads.num_heads + head) * length + token % length
    tl.store(outputs.delta_ptr + offset, delta, mask=exists)


@triton.jit
def fill_zeros(ptr, program, size, BLOCK: tl.constexpr):
    """Fill a block of ``size`` elements with zeros."""
    offset = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(ptr + offset, tl.zeros((BLOCK,), ptr.dtype.element_ty), mask=offset < size)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def prepare_kernel(
    # (B, H, W, C), twice; written: (B, h, H, W); sums of `num_sums` elements
    out_ptr,
    d_out_ptr,
    delta_ptr,
    sums_ptr,
    # numbers
    num_heads,
    map_tokens,
    batch_tokens,
    num_programs,
    num_sums,
    # constants
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Sum output times its gradient, a term of the gradients of all logits of a query.

    Programs: first ``num_programs`` ones, (blocks of the tokens of all images, h); then those that
    fill the sums of gradients with zeros.
    """
    program = tl.program_id(0)
    if program < num_programs:
        outputs = Outputs(out_ptr, d_out_ptr, delta_ptr, map_tokens, batch_tokens)
        compute_delta(outputs, program, Heads(num_heads, 1.0, HEAD_DIM, BLOCK_D), BLOCK)
    else:
        fill_zeros(sums_ptr, program - num_programs, num_sums, BLOCK_SIZE)


@triton.jit
def convert(source_ptr, target_ptr, program, size, BLOCK: tl.constexpr):
    """Convert a block of ``size`` elements to the dtype of the target."""
    offset = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(source_ptr + offset, mask=offset < size)
    tl.store(target_ptr + offset, values.to(target_ptr.dtype.element_ty), mask=offset < size)


@triton.jit
def add_strips(
    strips_ptr,
    sum_ptr,
    program,
    num_strips,
    num_bias,
    BLOCK: tl.constexpr,
    BLOCK_STRIPS: tl.constexpr,
):
    """Sum ``(num_strips, num_bias)`` over the first dimension for a block, in a fixed order."""
    offset = program * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK_STRIPS, BLOCK), sum_ptr.dtype.element_ty)
    for first in range(0, num_strips, BLOCK_STRIPS):
        strip = first + tl.arange(0, BLOCK_STRIPS).to(tl.int64)
        mask = (strip < num_strips)[:, None] & (offset < num_bias)[None, :]
        pointers = strips_ptr + strip[:, None] * num_bias + offset[None, :]
        acc += tl.load(pointers, mask=mask, other=0.0)
    tl.store(sum_ptr + offset, tl.sum(acc, 0), mask=offset < num_bias)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def finish_kernel(
    # `num_sums` elements, to be rounded; (num_strips, num_bias), to be added up
    sums_ptr,
    d_qkv_ptr,
    strips_ptr,
    d_bias_ptr,
    # numbers
    num_sums,
    num_programs,
    num_strips,
    num_bias,
    # constants
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_STRIPS: tl.constexpr,
):
    """Round the sums of gradients (first ``num_programs`` programs); sum over strips (others)."""
    program = tl.program_id(0)
    if program < num_programs:
        convert(sums_ptr, d_qkv_ptr, program, num_sums, BLOCK_SIZE)
    else:
        program -= num_programs
        add_strips(strips_ptr, d_bias_ptr, program, num_strips, num_bias, BLOCK, BLOCK_STRIPS)


@triton.jit
def compute_gradients(
    inputs, sums, strips, grid, heads, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Compute the gradients of a block of queries and keys; see ``gradient_kernel``."""
    Q_BLOCKS: tl.constexpr = (grid.WINDOW_SIZE * grid.WINDOW_SIZE + BLOCK_Q - 1) // BLOCK_Q
    program, num_blocks = tl.program_id(0), strips.first_block * 0 + 1
    if not strips.IS_ORDERED:
        num_blocks = count_blocks(grid, BLOCK_K)
    query_block = find_query_block(program // num_blocks % Q_BLOCKS * BLOCK_Q, grid, BLOCK_Q)
    exist = query_block.exists
    head = program // (num_blocks * Q_BLOCKS) % heads.num_heads
    strip = program // (num_blocks * Q_BLOCKS * heads.num_heads)
    block = find_key_block(strips.first_block + program % num_blocks, grid, BLOCK_K)
    bias = tl.trans(load_bias(bias_of(inputs.bias_ptr, head, grid), query_block, block))

    dtype: tl.constexpr = inputs.bias_ptr.dtype.element_ty
    d_bias = tl.zeros((BLOCK_K, BLOCK_Q), dtype)
    first = strip * strips.length
    for number in range(first, tl.minimum(first + strips.length, strips.num_windows)):
        window = locate(number, grid)
        queries = load_queries(inputs, query_block, window, head, grid, heads)
        tokens, on_map = find_keys(block, window)
        keys = load_keys(inputs.qkv, tokens, on_map, window.image, head, heads)
        weights, d_logits = compute_logit_gradients(
            queries, keys, block, bias, window, grid, heads
        )
        d_bias += d_logits
        no_queries = tl.zeros((BLOCK_Q, heads.BLOCK_D), dtype)
        d_q = add_dot(no_queries, tl.trans(d_logits), keys.k) * heads.scale
        rows = rows_of(sums, window.image, head, 0, heads)
        # Not a result of `load_queries`: to PyTorch, writing there writes to all that it loads.
        q_tokens = query_tokens(query_block, window, grid)
        if strips.IS_ORDERED:
            d_q += load_rows(rows, q_tokens, exist, heads)
            store_rows(rows, q_tokens, d_q, exist, heads)
        else:
            add_rows(rows, q_tokens, d_q, exist, heads)
            no_keys = tl.zeros((BLOCK_K, heads.BLOCK_D), dtype)
            d_k = add_dot(no_keys, d_logits, queries.q) * heads.scale
            add_rows(rows_of(sums, window.image, head, 1, heads), tokens, d_k, on_map, heads)
            d_v = add_dot(no_keys, weights, queries.d_out)
            add_rows(rows_of(sums, window.image, head, 2, heads), tokens, d_v, on_map, heads)

    d_head_bias = bias_of(strips.d_bias_ptr, strip.to(tl.int64) * heads.num_heads + head, grid)
    pointers = bias_pointers(d_head_bias, query_block.position, block)
    tl.store(pointers, tl.trans(d_bias), mask=exist[:, None])


@triton.jit(do_not_specialize=UNSPECIALIZED)
def gradient_kernel(
    # as in the forward kernel; gradient of the output; (B, h, H, W)
    qkv_ptr,
    bias_ptr,
    log_sum_ptr,
    d_out_ptr,
    delta_ptr,
    # (B, T, 3C), added to; by strips, written: (strips, h, w*w, columns)
    sums_ptr,
    d_bias_ptr,
    stride_image,
    stride_token,
    # numbers
    nh,
    nw,
    num_heads,
    expand_size,
    focal_window,
    scale,
    num_windows,
    windows_per_strip,
    num_tokens,
    first_block,
    # constants
    WINDOW_SIZE: tl.constexpr,
    FOCAL_LEVEL: tl.constexpr,
    SHIFT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IS_ORDERED: tl.constexpr,  # keys are handled by the kernel with a fixed order
):
    """Compute all gradients. Programs: (strips, h, blocks of queries, blocks of keys).

    A strip is a run of consecutive windows over all images. A program keeps its block of the bias
    and of its gradient while it iterates over its strip; no other program writes to this part of
    ``d_bias``. Programs share tokens, so gradients of tokens are added atomically. In a fixed
    order, a launch computes one block of keys, ``first_block``, and programs share no queries.
    """
    qkv, channels = Tokens(qkv_ptr, stride_image, stride_token), 3 * num_heads * HEAD_DIM
    compute_gradients(
        Inputs(qkv, bias_ptr, log_sum_ptr, d_out_ptr, delta_ptr),
        Tokens(sums_ptr, num_tokens * channels, channels),
        Strips(d_bias_ptr, num_windows, windows_per_strip, first_block, IS_ORDERED),
        Grid(nh, nw, expand_size, focal_window, WINDOW_SIZE, FOCAL_LEVEL, SHIFT),
        Heads(num_heads, scale, HEAD_DIM, BLOCK_D),
        BLOCK_Q,
        BLOCK_K,
    )


@triton.jit
def viewers(first, last, windows, region):
    """Return first and last window along an axis whose regions contain any of the positions.

    The positions are ``first`` to ``last``. On a wrapped map, windows are counted beyond both ends
    (-1 is the last one), because a window may have a position as a key several times.
    """
    # Position p is at p + margin - n * step, 0 .. side - 1, of the region of window n. An offset
    # avoids divisions of negative numbers, which would round up.
    side, step = region.side, region.step
    begin = (first + region.margin - side + step + side * step) // step - side
    end = (last + region.margin) // step
    begin = tl.where(region.is_wrapped, begin, tl.maximum(begin, 0))
    return begin, tl.where(region.is_wrapped, end, tl.minimum(end, windows - 1))


@triton.jit
def wrap(number, windows):
    """Return the window for an index beyond an end of the map."""
    number = tl.where(number < 0, number + windows, number)
    return tl.where(number < windows, number, number - windows)


@triton.jit
def find_tile(number, region, TILE: tl.constexpr):
    """Return a tile of the map of a region by its index over all images."""
    tile_cols = tl.cdiv(region.cols, TILE)
    tiles = tl.cdiv(region.rows, TILE) * tile_cols
    top, left = number % tiles // tile_cols * TILE, number % tiles % tile_cols * TILE
    row = top + tl.arange(0, TILE * TILE) // TILE
    col = left + tl.arange(0, TILE * TILE) % TILE
    return Tile(
        image=(number // tiles).to(tl.int64),
        top=top,
        left=left,
        row=row,
        col=col,
        tokens=region.first_token + row * region.cols + col,
        on_map=(row < region.rows) & (col < region.cols),
    )


@triton.jit
def seen_keys(tile, region, unwrapped_row, unwrapped_col):
    """Return a tile as keys of a window; keys outside its region are marked as padding."""
    row = tile.row - unwrapped_row * region.step
    col = tile.col - unwrapped_col * region.step
    region_row, region_col, side = row + region.margin, col + region.margin, region.side
    exists = tile.on_map & (region_row >= 0) & (region_row < side)
    exists = exists & (region_col >= 0) & (region_col < side)
    column = region.first + region_row * side + region_col
    return KeyBlock(region=region, column=column, row=row, col=col, exists=exists)


@triton.jit
def compute_key_gradients(
    inputs, sums, region_index, grid, heads, BLOCK_Q: tl.constexpr, TILE: tl.constexpr
):
    """Compute the gradients of a tile of keys of a region; see ``key_gradient_kernel``."""
    dtype: tl.constexpr = inputs.bias_ptr.dtype.element_ty
    head = tl.program_id(0) % heads.num_heads
    region, _ = find_region(region_index, grid, WHOLE_REGION)
    tile = find_tile(tl.program_id(0) // heads.num_heads, region, TILE)
    keys = load_keys(inputs.qkv, tile.tokens, tile.on_map, tile.image, head, heads)
    head_bias = bias_of(inputs.bias_ptr, head, grid)
    d_k = tl.zeros((TILE * TILE, heads.BLOCK_D), dtype)
    d_v = tl.zeros((TILE * TILE, heads.BLOCK_D), dtype)
    bottom = tl.minimum(tile.top + TILE, region.rows) - 1
    right = tl.minimum(tile.left + TILE, region.cols) - 1
    first_row, last_row = viewers(tile.top, bottom, grid.nh, region)
    first_col, last_col = viewers(tile.left, right, grid.nw, region)
    for row in range(first_row, last_row + 1):
        for col in range(first_col, last_col + 1):
            window = window_at(tile.image, wrap(row, grid.nh), wrap(col, grid.nw), grid)
            block = seen_keys(tile, region, row, col)
            for first in range(0, grid.WINDOW_SIZE * grid.WINDOW_SIZE, BLOCK_Q):
                query_block = find_query_block(first, grid, BLOCK_Q)
                queries = load_queries(inputs, query_block, window, head, grid, heads)
                pointers = bias_pointers(head_bias, query_block.clamped, block)
                seen = block.exists[None, :]
                bias = tl.load(pointers, mask=seen, other=float('-inf')) * LOG2_E
                weights, d_logits = compute_logit_gradients(
                    queries, keys, block, tl.trans(bias), window, grid, heads
                )
                d_k = add_dot(d_k, d_logits, queries.q)
                d_v = add_dot(d_v, weights, queries.d_out)

    rows = rows_of(sums, tile.image, head, 1, heads)
    store_rows(rows, tile.tokens, d_k * heads.scale, tile.on_map, heads)
    rows = rows_of(sums, tile.image, head, 2, heads)
    store_rows(rows, tile.tokens, d_v, tile.on_map, heads)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def key_gradient_kernel(
    # as in the gradient kernel
    qkv_ptr,
    bias_ptr,
    log_sum_ptr,
    d_out_ptr,
    delta_ptr,
    sums_ptr,
    stride_image,
    stride_token,
    # numbers
    nh,
    nw,
    num_heads,
    expand_size,
    focal_window,
    scale,
    num_tokens,
    region_index,  # in geometry.regions
    # constants
    WINDOW_SIZE: tl.constexpr,
    FOCAL_LEVEL: tl.constexpr,
    SHIFT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE: tl.constexpr,
):
    """Compute gradients of keys and values in a fixed order. Programs: (B, tiles, h).

    A program computes ``TILE * TILE`` keys of the map and iterates over all windows that attend
    to any of them, so that no two programs add to the same element.
    """
    qkv, channels = Tokens(qkv_ptr, stride_image, stride_token), 3 * num_heads * HEAD_DIM
    compute_key_gradients(
        Inputs(qkv, bias_ptr, log_sum_ptr, d_out_ptr, delta_ptr),
        Tokens(sums_ptr, num_tokens * channels, channels),
        region_index,
        Grid(nh, nw, expand_size, focal_window, WINDOW_SIZE, FOCAL_LEVEL, SHIFT),
        Heads(num_heads, scale, HEAD_DIM, BLOCK_D),
        BLOCK_Q,
        TILE,
    )
