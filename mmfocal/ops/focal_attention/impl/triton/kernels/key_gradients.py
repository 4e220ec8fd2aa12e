# SPDX-License-Identifier: Apache-2.0
"""Gradients of keys, values and bias: atomically added, or in a fixed order."""

import triton
import triton.language as tl

from .blocks import (
    SIZES,
    add_dot,
    add_rows,
    load_rows,
    locate,
    logit_gradients,
    query_offsets,
    region_keys,
    region_logits,
    store_rows,
    tuned,
)


@triton.jit
def _load_queries(
    qkv_ptr,
    d_out_ptr,
    log_sum_ptr,
    delta_ptr,
    stride_image,
    stride_row,
    stride_col,
    query,
    head,
    image,
    win_row,
    win_col,
    nh,
    nw,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """What the gradients of keys need of a block of queries: q, d_out, log_sum and delta."""
    is_query = query < WINDOW * WINDOW
    offsets = query_offsets(query, win_row, win_col, stride_row, stride_col, WINDOW)
    q_ptr = qkv_ptr + image * stride_image + head * HEAD_DIM
    q = load_rows(q_ptr, offsets, is_query, HEAD_DIM, BLOCK_D)
    tokens = query_offsets(query, win_row, win_col, nw * WINDOW, 1, WINDOW)
    first_token = image * nh * nw * WINDOW * WINDOW
    d_out_ptr += (first_token * NUM_HEADS + head) * HEAD_DIM
    d_out = load_rows(d_out_ptr, tokens * NUM_HEADS * HEAD_DIM, is_query, HEAD_DIM, BLOCK_D)
    window = (image * nh + win_row) * nw + win_col
    sums = (window * NUM_HEADS + head) * WINDOW * WINDOW + query
    log_sum = tl.load(log_sum_ptr + sums, mask=is_query, other=float('inf'))  # weights of 0
    delta = tl.load(delta_ptr + sums, mask=is_query, other=0.0)
    return q, d_out, log_sum, delta


@tuned(restore_value=['d_kv_ptr'])
@triton.jit(do_not_specialize=SIZES)
def window_gradient_kernel(
    # as in the query gradient kernel
    qkv_ptr,
    bias_ptr,
    log_sum_ptr,
    d_out_ptr,
    delta_ptr,
    # keys and values of the region's map, first channel of the keys; their gradients, added to;
    # gradient of the bias by strips, written: (strips, h, w*w, K)
    kv_ptr,
    d_kv_ptr,
    d_bias_ptr,
    # strides of qkv, and of the map
    stride_image,
    stride_row,
    stride_col,
    kv_stride_image,
    kv_stride_row,
    kv_stride_col,
    d_kv_stride_image,
    d_kv_stride_row,
    d_kv_stride_col,
    # sizes
    nh,
    nw,
    map_rows,
    map_cols,
    num_windows,
    windows_per_strip,
    # constants
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
    MARGIN: tl.constexpr,
    WRAPPED: tl.constexpr,
    ADD_KEYS: tl.constexpr,  # whether to add to the gradients of keys and values
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Gradients of bias, keys and values; programs: (strips, h, blocks of queries, of keys).

    A strip is a run of windows, counted over all images. A program keeps its block of the bias
    gradient while it walks along its strip; nobody else writes to its place in ``d_bias``. Keys
    and values are shared between windows, so their gradients are added atomically.
    """
    CHANNELS: tl.constexpr = NUM_HEADS * HEAD_DIM
    Q_BLOCKS: tl.constexpr = (WINDOW * WINDOW + BLOCK_Q - 1) // BLOCK_Q
    K_BLOCKS: tl.constexpr = (SIZE * SIZE + BLOCK_K - 1) // BLOCK_K
    program = tl.program_id(0)
    start = program % K_BLOCKS * BLOCK_K
    query = program // K_BLOCKS % Q_BLOCKS * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head = program // (K_BLOCKS * Q_BLOCKS) % NUM_HEADS
    strip = program // (K_BLOCKS * Q_BLOCKS * NUM_HEADS)
    bias_ptr += head * WINDOW * WINDOW * NUM_KEYS
    kv_ptr += head * HEAD_DIM
    d_kv_ptr += head * HEAD_DIM

    d_bias = tl.zeros((BLOCK_Q, BLOCK_K), bias_ptr.dtype.element_ty)
    first = strip * windows_per_strip
    for window in range(first, tl.minimum(first + windows_per_strip, num_windows)):
        image, win_row, win_col = locate(window, nh, nw)
        q, d_out, log_sum, delta = _load_queries(
            qkv_ptr, d_out_ptr, log_sum_ptr, delta_ptr, stride_image, stride_row, stride_col,
            query, head, image, win_row, win_col, nh, nw, NUM_HEADS, HEAD_DIM, WINDOW, BLOCK_D,
        )  # fmt: skip
        place, row, col, exists, on_map = region_keys(
            start, win_row, win_col, map_rows, map_cols, SIZE, STEP, MARGIN, WRAPPED, BLOCK_K
        )
        k_ptr = kv_ptr + image * kv_stride_image
        offsets = row * kv_stride_row + col * kv_stride_col
        k = load_rows(k_ptr, offsets, on_map, HEAD_DIM, BLOCK_D)
        v = load_rows(k_ptr + CHANNELS, offsets, on_map, HEAD_DIM, BLOCK_D)
        logits = region_logits(
            q, k, bias_ptr, query, place, exists, on_map, win_row == nh - 1, win_col == nw - 1,
            NUM_KEYS, SCALE, WINDOW, SHIFT, SIZE, MARGIN, WRAPPED,
        )  # fmt: skip
        weights, d_logits = logit_gradients(logits, log_sum, delta, d_out, v)
        d_bias += d_logits
        if ADD_KEYS:
            d_k = tl.dot(tl.trans(d_logits.to(q.dtype)), q, input_precision='ieee') * SCALE
            d_v = tl.dot(tl.trans(weights.to(q.dtype)), d_out, input_precision='ieee')
            d_k_ptr = d_kv_ptr + image * d_kv_stride_image
            offsets = row * d_kv_stride_row + col * d_kv_stride_col
            add_rows(d_k_ptr, offsets, d_k, on_map, HEAD_DIM, BLOCK_D)
            add_rows(d_k_ptr + CHANNELS, offsets, d_v, on_map, HEAD_DIM, BLOCK_D)

    place = start + tl.arange(0, BLOCK_K)
    mask = (query < WINDOW * WINDOW)[:, None] & (place < SIZE * SIZE)[None, :]
    d_bias_ptr += (strip.to(tl.int64) * NUM_HEADS + head) * WINDOW * WINDOW * NUM_KEYS
    tl.store(d_bias_ptr + query[:, None] * NUM_KEYS + place[None, :], d_bias, mask=mask)


@triton.jit
def _viewers(
    first,
    last,
    windows,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
    MARGIN: tl.constexpr,
    WRAPPED: tl.constexpr,
):
    """First and last window, along one axis, whose regions meet positions ``first`` to ``last``.

    On a wrapped map windows are counted beyond both ends, -1 being the last one: the same window
    may see a position at several places.
    """
    # Window n sees position p at place p + MARGIN - n * STEP of 0 .. SIZE - 1. The division is
    # kept from negative numbers, which it would round upwards.
    begin = (first + MARGIN - SIZE + STEP + SIZE * STEP) // STEP - SIZE
    end = (last + MARGIN) // STEP
    if not WRAPPED:
        begin = tl.maximum(begin, 0)
        end = tl.minimum(end, windows - 1)
    return begin, end


@triton.jit
def _wrap(window, windows):
    """The window that one counted beyond an end stands for."""
    window = tl.where(window < 0, window + windows, window)
    return tl.where(window < windows, window, window - windows)


@triton.jit(do_not_specialize=SIZES)
def key_gradient_kernel(
    # as in the query gradient kernel
    qkv_ptr,
    bias_ptr,
    log_sum_ptr,
    d_out_ptr,
    delta_ptr,
    # keys and values of the region's map, first channel of the keys; their gradients, written
    kv_ptr,
    d_kv_ptr,
    # strides of qkv, and of the map
    stride_image,
    stride_row,
    stride_col,
    kv_stride_image,
    kv_stride_row,
    kv_stride_col,
    d_kv_stride_image,
    d_kv_stride_row,
    d_kv_stride_col,
    # sizes
    nh,
    nw,
    map_rows,
    map_cols,
    # constants
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
    MARGIN: tl.constexpr,
    WRAPPED: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients of keys and values in a fixed order; programs: (B, tiles of the map, h).

    A program takes ``TILE * TILE`` keys of the map and visits every window that sees any of them,
    so that nothing is added by two programs.
    """
    CHANNELS: tl.constexpr = NUM_HEADS * HEAD_DIM
    program = tl.program_id(0)
    head = program % NUM_HEADS
    tile_cols = (map_cols + TILE - 1) // TILE
    tiles = (map_rows + TILE - 1) // TILE * tile_cols
    tile = program // NUM_HEADS % tiles
    image = (program // (NUM_HEADS * tiles)).to(tl.int64)
    top, left = tile // tile_cols * TILE, tile % tile_cols * TILE

    row = top + tl.arange(0, TILE * TILE) // TILE
    col = left + tl.arange(0, TILE * TILE) % TILE
    on_map = (row < map_rows) & (col < map_cols)
    k_ptr = kv_ptr + image * kv_stride_image + head * HEAD_DIM
    offsets = row * kv_stride_row + col * kv_stride_col
    k = load_rows(k_ptr, offsets, on_map, HEAD_DIM, BLOCK_D)
    v = load_rows(k_ptr + CHANNELS, offsets, on_map, HEAD_DIM, BLOCK_D)
    bias_ptr += head * WINDOW * WINDOW * NUM_KEYS

    d_k = tl.zeros((TILE * TILE, BLOCK_D), bias_ptr.dtype.element_ty)
    d_v = tl.zeros((TILE * TILE, BLOCK_D), bias_ptr.dtype.element_ty)
    bottom, right = tl.minimum(top + TILE, map_rows) - 1, tl.minimum(left + TILE, map_cols) - 1
    first_row, last_row = _viewers(top, bottom, nh, SIZE, STEP, MARGIN, WRAPPED)
    first_col, last_col = _viewers(left, right, nw, SIZE, STEP, MARGIN, WRAPPED)
    for unwrapped_row in range(first_row, last_row + 1):
        for unwrapped_col in range(first_col, last_col + 1):
            win_row, win_col = _wrap(unwrapped_row, nh), _wrap(unwrapped_col, nw)
            place_row = row + MARGIN - unwrapped_row * STEP
            place_col = col + MARGIN - unwrapped_col * STEP
            seen = (place_row >= 0) & (place_row < SIZE) & (place_col >= 0) & (place_col < SIZE)
            seen = seen & on_map
            place = place_row * SIZE + place_col
            for start in range(0, WINDOW * WINDOW, BLOCK_Q):
                query = start + tl.arange(0, BLOCK_Q)
                q, d_out, log_sum, delta = _load_queries(
                    qkv_ptr, d_out_ptr, log_sum_ptr, delta_ptr,
                    stride_image, stride_row, stride_col, query, head, image, win_row, win_col,
                    nh, nw, NUM_HEADS, HEAD_DIM, WINDOW, BLOCK_D,
                )  # fmt: skip
                logits = region_logits(
                    q, k, bias_ptr, query, place, seen, seen, win_row == nh - 1, win_col == nw - 1,
                    NUM_KEYS, SCALE, WINDOW, SHIFT, SIZE, MARGIN, WRAPPED,
                )  # fmt: skip
                weights, d_logits = logit_gradients(logits, log_sum, delta, d_out, v)
                d_k = add_dot(d_k, tl.trans(d_logits), q)
                d_v = add_dot(d_v, tl.trans(weights), d_out)

    d_k_ptr = d_kv_ptr + image * d_kv_stride_image + head * HEAD_DIM
    offsets = row * d_kv_stride_row + col * d_kv_stride_col
    store_rows(d_k_ptr, offsets, d_k * SCALE, on_map, HEAD_DIM, BLOCK_D)
    store_rows(d_k_ptr + CHANNELS, offsets, d_v, on_map, HEAD_DIM, BLOCK_D)
