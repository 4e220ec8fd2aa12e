# SPDX-License-Identifier: Apache-2.0
"""Backward kernels: all gradients in one pass, or those of keys in a fixed order."""

from typing import NamedTuple

import triton
import triton.language as tl

from .blocks import (
    LOG2_E,
    SIZES,
    KeyBlock,
    Window,
    add_dot,
    add_rows,
    bias_pointers,
    count_blocks,
    count_columns,
    find_keys,
    key_block,
    key_mask,
    load_bias,
    load_rows,
    locate,
    query_tokens,
    region_at,
    seam_mask,
    store_rows,
)


class Queries(NamedTuple):
    """Data of a block of queries that the gradients need."""

    q: tl.tensor
    d_out: tl.tensor
    log_sum: tl.tensor
    delta: tl.tensor


@triton.jit
def load_queries(
    qkv_ptr,
    d_out_ptr,
    log_sum_ptr,
    delta_ptr,
    stride_image,
    stride_token,
    query,
    tokens,
    window,
    head,
    num_heads,
    image_tokens,
    AREA: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Load a block of queries; the weights of queries beyond the window are zero."""
    is_query, channels = query < AREA, num_heads * HEAD_DIM
    q_ptr = qkv_ptr + window.image * stride_image + head * HEAD_DIM
    d_out_ptr += window.image * image_tokens * channels + head * HEAD_DIM
    first_sum = (window.image * num_heads + head) * image_tokens
    return Queries(
        q=load_rows(q_ptr, tokens, stride_token, is_query, HEAD_DIM, BLOCK_D),
        d_out=load_rows(d_out_ptr, tokens, channels, is_query, HEAD_DIM, BLOCK_D),
        log_sum=tl.load(log_sum_ptr + first_sum + tokens, mask=is_query, other=float('inf')),
        delta=tl.load(delta_ptr + first_sum + tokens, mask=is_query, other=0.0),
    )


@triton.jit
def compute_logit_gradients(
    k,
    v,
    queries,
    bias,
    query,
    keys,
    on_map,
    window,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """Return weights and gradients of the logits, transposed: both ``(BLOCK_K, BLOCK_Q)``."""
    logits = tl.dot(k, tl.trans(queries.q), input_precision='ieee') * (SCALE * LOG2_E) + bias
    logits += key_mask(on_map)[:, None]
    if SHIFT > 0:
        logits += tl.trans(seam_mask(query, keys, window, WINDOW, SHIFT))
    weights = tl.exp2(logits - queries.log_sum[None, :])
    d_weights = tl.dot(v, tl.trans(queries.d_out), input_precision='ieee')
    return weights, weights * (d_weights - queries.delta[None, :])


@triton.jit
def compute_delta(
    out_ptr,
    d_out_ptr,
    delta_ptr,
    program,
    num_heads,
    area,
    tokens,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum output times its gradient for a block of tokens; see ``prepare_kernel``."""
    head, channels = program % num_heads, num_heads * HEAD_DIM
    token = (program // num_heads).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists, offset = token < tokens, head * HEAD_DIM
    out = load_rows(out_ptr + offset, token, channels, exists, HEAD_DIM, BLOCK_D)
    d_out = load_rows(d_out_ptr + offset, token, channels, exists, HEAD_DIM, BLOCK_D)
    dtype: tl.constexpr = delta_ptr.dtype.element_ty
    delta = tl.sum(out.to(dtype) * d_out.to(dtype), 1)
    place = (token // area * num_heads + head) * area + token % area
    tl.store(delta_ptr + place, delta, mask=exists)


@triton.jit
def fill_zeros(ptr, program, size, BLOCK: tl.constexpr):
    """Fill a block of ``size`` elements with zeros."""
    place = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(ptr + place, tl.zeros((BLOCK,), ptr.dtype.element_ty), mask=place < size)


@triton.jit
def convert(source_ptr, target_ptr, program, size, BLOCK: tl.constexpr):
    """Convert a block of ``size`` elements to the dtype of the target."""
    place = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(source_ptr + place, mask=place < size)
    tl.store(target_ptr + place, values.to(target_ptr.dtype.element_ty), mask=place < size)


@triton.jit
def add_strips(
    strips_ptr, sum_ptr, program, strips, area, BLOCK: tl.constexpr, BLOCK_STRIPS: tl.constexpr
):
    """Sum ``(strips, area)`` over the first dimension for a block, in a fixed order."""
    place = program * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK_STRIPS, BLOCK), sum_ptr.dtype.element_ty)
    for first in range(0, strips, BLOCK_STRIPS):
        strip = first + tl.arange(0, BLOCK_STRIPS).to(tl.int64)
        mask = (strip < strips)[:, None] & (place < area)[None, :]
        acc += tl.load(strips_ptr + strip[:, None] * area + place[None, :], mask=mask, other=0.0)
    tl.store(sum_ptr + place, tl.sum(acc, 0), mask=place < area)


@triton.jit(do_not_specialize=SIZES)
def prepare_kernel(
    # (B, H, W, C), twice; written: (B, h, H, W); sums of `size` elements
    out_ptr,
    d_out_ptr,
    delta_ptr,
    sums_ptr,
    # sizes
    num_heads,
    area,
    tokens,
    programs,
    size,
    # constants
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Sum output times its gradient, a term of the gradients of all logits of a query.

    Programs: first ``programs`` ones, (blocks of the tokens of all images, h), with ``area``
    tokens per image; then those that fill the sums of gradients with zeros.
    """
    program = tl.program_id(0)
    if program < programs:
        compute_delta(
            out_ptr, d_out_ptr, delta_ptr, program, num_heads, area, tokens,
            HEAD_DIM, BLOCK_D, BLOCK,
        )  # fmt: skip
    else:
        fill_zeros(sums_ptr, program - programs, size, BLOCK_SIZE)


@triton.jit(do_not_specialize=SIZES)
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
    # sizes
    nh,
    nw,
    num_heads,
    expand_size,
    focal_window,
    num_windows,
    windows_per_strip,
    tokens,
    first_block,
    # constants
    WINDOW: tl.constexpr,
    COARSE_LEVELS: tl.constexpr,
    SHIFT: tl.constexpr,
    SCALE: tl.constexpr,
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
    AREA: tl.constexpr = WINDOW * WINDOW
    Q_BLOCKS: tl.constexpr = (AREA + BLOCK_Q - 1) // BLOCK_Q
    program, channels = tl.program_id(0), num_heads * HEAD_DIM
    num_blocks = first_block * 0 + 1
    if not IS_ORDERED:
        num_blocks = count_blocks(expand_size, focal_window, WINDOW, COARSE_LEVELS, BLOCK_K)
    block = first_block + program % num_blocks
    query = program // num_blocks % Q_BLOCKS * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head = program // (num_blocks * Q_BLOCKS) % num_heads
    strip = program // (num_blocks * Q_BLOCKS * num_heads)
    is_query, own_query = query < AREA, tl.minimum(query, AREA - 1)
    keys = key_block(block, nh, nw, expand_size, focal_window, WINDOW, COARSE_LEVELS, BLOCK_K)
    last = region_at(COARSE_LEVELS, nh, nw, expand_size, focal_window, WINDOW, COARSE_LEVELS)
    num_columns = count_columns(last)
    bias_ptr += head * AREA * num_columns
    bias = tl.trans(load_bias(bias_ptr, own_query, keys, num_columns))

    dtype: tl.constexpr = bias_ptr.dtype.element_ty
    d_bias = tl.zeros((BLOCK_K, BLOCK_Q), dtype)
    first = strip * windows_per_strip
    for number in range(first, tl.minimum(first + windows_per_strip, num_windows)):
        window = locate(number, nh, nw)
        q_tokens = query_tokens(own_query, window, nw, WINDOW)
        queries = load_queries(
            qkv_ptr, d_out_ptr, log_sum_ptr, delta_ptr, stride_image, stride_token,
            query, q_tokens, window, head, num_heads, nh * nw * AREA, AREA, HEAD_DIM, BLOCK_D,
        )  # fmt: skip
        k_tokens, on_map = find_keys(keys, window)
        k_ptr = qkv_ptr + window.image * stride_image + head * HEAD_DIM + channels
        k = load_rows(k_ptr, k_tokens, stride_token, on_map, HEAD_DIM, BLOCK_D)
        v = load_rows(k_ptr + channels, k_tokens, stride_token, on_map, HEAD_DIM, BLOCK_D)
        weights, d_logits = compute_logit_gradients(
            k, v, queries, bias, query, keys, on_map, window, SCALE, WINDOW, SHIFT
        )
        d_bias += d_logits
        d_q_ptr = sums_ptr + window.image * tokens * 3 * channels + head * HEAD_DIM
        d_q = add_dot(tl.zeros((BLOCK_Q, BLOCK_D), dtype), tl.trans(d_logits), k) * SCALE
        no_keys = tl.zeros((BLOCK_K, BLOCK_D), dtype)
        if IS_ORDERED:
            d_q += load_rows(d_q_ptr, q_tokens, 3 * channels, is_query, HEAD_DIM, BLOCK_D)
            store_rows(d_q_ptr, q_tokens, 3 * channels, d_q, is_query, HEAD_DIM, BLOCK_D)
        else:
            add_rows(d_q_ptr, q_tokens, 3 * channels, d_q, is_query, HEAD_DIM, BLOCK_D)
            d_k_ptr = d_q_ptr + channels
            d_k = add_dot(no_keys, d_logits, queries.q) * SCALE
            add_rows(d_k_ptr, k_tokens, 3 * channels, d_k, on_map, HEAD_DIM, BLOCK_D)
            d_v = add_dot(no_keys, weights, queries.d_out)
            add_rows(d_k_ptr + channels, k_tokens, 3 * channels, d_v, on_map, HEAD_DIM, BLOCK_D)

    d_bias_ptr += (strip.to(tl.int64) * num_heads + head) * AREA * num_columns
    pointers = bias_pointers(d_bias_ptr, query, keys, num_columns)
    tl.store(pointers, tl.trans(d_bias), mask=is_query[:, None])


@triton.jit(do_not_specialize=SIZES)
def finish_kernel(
    # `size` elements, to be rounded; (strips, area), to be added up
    sums_ptr,
    d_qkv_ptr,
    strips_ptr,
    d_bias_ptr,
    # sizes
    size,
    programs,
    strips,
    area,
    # constants
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_STRIPS: tl.constexpr,
):
    """Round the sums of gradients (first ``programs`` programs); sum over strips (others)."""
    program = tl.program_id(0)
    if program < programs:
        convert(sums_ptr, d_qkv_ptr, program, size, BLOCK_SIZE)
    else:
        add_strips(strips_ptr, d_bias_ptr, program - programs, strips, area, BLOCK, BLOCK_STRIPS)


@triton.jit
def viewers(first, last, windows, region):
    """Return first and last window along an axis whose regions contain any of the positions.

    The positions are ``first`` to ``last``. On a wrapped map, windows are counted beyond both ends
    (-1 is the last one), because a window may have a position as a key several times.
    """
    # Position p is at p + margin - n * step, 0 .. size - 1, of the region of window n. An offset
    # avoids divisions of negative numbers, which would round up.
    size, step = region.size, region.step
    begin = (first + region.margin - size + step + size * step) // step - size
    end = (last + region.margin) // step
    begin = tl.where(region.is_wrapped, begin, tl.maximum(begin, 0))
    return begin, tl.where(region.is_wrapped, end, tl.minimum(end, windows - 1))


@triton.jit
def wrap(number, windows):
    """Return the window for an index beyond an end of the map."""
    number = tl.where(number < 0, number + windows, number)
    return tl.where(number < windows, number, number - windows)


@triton.jit
def seen_keys(region, row, col, exist, unwrapped_row, unwrapped_col):
    """Return positions of a map as keys of a window; other positions are marked as padding."""
    row = row - unwrapped_row * region.step
    col = col - unwrapped_col * region.step
    place_row, place_col, size = row + region.margin, col + region.margin, region.size
    exist = exist & (place_row >= 0) & (place_row < size) & (place_col >= 0) & (place_col < size)
    column = region.first + place_row * size + place_col
    return KeyBlock(region=region, column=column, row=row, col=col, exists=exist)


@triton.jit(do_not_specialize=SIZES)
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
    # sizes
    nh,
    nw,
    num_heads,
    expand_size,
    focal_window,
    tokens,
    region,  # its index in geometry.regions
    # constants
    WINDOW: tl.constexpr,
    COARSE_LEVELS: tl.constexpr,
    SHIFT: tl.constexpr,
    SCALE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE: tl.constexpr,
):
    """Compute gradients of keys and values in a fixed order. Programs: (B, tiles, h).

    A program computes ``TILE * TILE`` keys of the map and iterates over all windows that attend
    any of them, so that no two programs add to the same element.
    """
    AREA: tl.constexpr = WINDOW * WINDOW
    program, channels = tl.program_id(0), num_heads * HEAD_DIM
    last = region_at(COARSE_LEVELS, nh, nw, expand_size, focal_window, WINDOW, COARSE_LEVELS)
    num_columns = count_columns(last)
    region = region_at(region, nh, nw, expand_size, focal_window, WINDOW, COARSE_LEVELS)
    head = program % num_heads
    tile_cols = tl.cdiv(region.cols, TILE)
    tiles = tl.cdiv(region.rows, TILE) * tile_cols
    tile, image = program // num_heads % tiles, (program // (num_heads * tiles)).to(tl.int64)
    top, left = tile // tile_cols * TILE, tile % tile_cols * TILE

    row = top + tl.arange(0, TILE * TILE) // TILE
    col = left + tl.arange(0, TILE * TILE) % TILE
    on_map = (row < region.rows) & (col < region.cols)
    k_tokens = region.first_token + row * region.cols + col
    k_ptr = qkv_ptr + image * stride_image + head * HEAD_DIM + channels
    k = load_rows(k_ptr, k_tokens, stride_token, on_map, HEAD_DIM, BLOCK_D)
    v = load_rows(k_ptr + channels, k_tokens, stride_token, on_map, HEAD_DIM, BLOCK_D)
    bias_ptr += head * AREA * num_columns

    dtype: tl.constexpr = bias_ptr.dtype.element_ty
    d_k = tl.zeros((TILE * TILE, BLOCK_D), dtype)
    d_v = tl.zeros((TILE * TILE, BLOCK_D), dtype)
    bottom = tl.minimum(top + TILE, region.rows) - 1
    right = tl.minimum(left + TILE, region.cols) - 1
    first_row, last_row = viewers(top, bottom, nh, region)
    first_col, last_col = viewers(left, right, nw, region)
    for unwrapped_row in range(first_row, last_row + 1):
        for unwrapped_col in range(first_col, last_col + 1):
            win_row, win_col = wrap(unwrapped_row, nh), wrap(unwrapped_col, nw)
            window = Window(
                image=image,
                row=win_row,
                col=win_col,
                is_last_row=win_row == nh - 1,
                is_last_col=win_col == nw - 1,
            )
            keys = seen_keys(region, row, col, on_map, unwrapped_row, unwrapped_col)
            for start in range(0, AREA, BLOCK_Q):
                query = start + tl.arange(0, BLOCK_Q)
                q_tokens = query_tokens(tl.minimum(query, AREA - 1), window, nw, WINDOW)
                queries = load_queries(
                    qkv_ptr, d_out_ptr, log_sum_ptr, delta_ptr, stride_image, stride_token, query,
                    q_tokens, window, head, num_heads, nh * nw * AREA, AREA, HEAD_DIM, BLOCK_D,
                )  # fmt: skip
                pointers = bias_pointers(bias_ptr, tl.minimum(query, AREA - 1), keys, num_columns)
                seen = keys.exists[None, :]
                bias = tl.load(pointers, mask=seen, other=float('-inf')) * LOG2_E
                weights, d_logits = compute_logit_gradients(
                    k, v, queries, tl.trans(bias), query, keys, on_map, window,
                    SCALE, WINDOW, SHIFT,
                )  # fmt: skip
                d_k = add_dot(d_k, d_logits, queries.q)
                d_v = add_dot(d_v, weights, queries.d_out)

    d_k_ptr = sums_ptr + image * tokens * 3 * channels + head * HEAD_DIM + channels
    store_rows(d_k_ptr, k_tokens, 3 * channels, d_k * SCALE, on_map, HEAD_DIM, BLOCK_D)
    store_rows(d_k_ptr + channels, k_tokens, 3 * channels, d_v, on_map, HEAD_DIM, BLOCK_D)
