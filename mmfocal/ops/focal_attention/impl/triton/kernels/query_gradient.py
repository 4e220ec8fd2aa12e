# SPDX-License-Identifier: Apache-2.0
"""Gradient of the queries."""

import triton
import triton.language as tl

from .blocks import (
    SIZES,
    add_dot,
    load_rows,
    locate,
    logit_gradients,
    query_block,
    query_offsets,
    region_keys,
    region_logits,
    store_rows,
    tuned,
)


@triton.jit
def _query_gradient_of_region(
    acc,
    q,
    d_out,
    log_sum,
    delta,
    query,
    k_ptr,
    v_ptr,
    stride_row,
    stride_col,
    bias_ptr,
    win_row,
    win_col,
    nh,
    nw,
    map_rows,
    map_cols,
    NUM_KEYS: tl.constexpr,
    SCALE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
    MARGIN: tl.constexpr,
    WRAPPED: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add what the keys of one region contribute to the query gradient, but for the scale."""
    for start in range(0, SIZE * SIZE, BLOCK_K):
        place, row, col, exists, on_map = region_keys(
            start, win_row, win_col, map_rows, map_cols, SIZE, STEP, MARGIN, WRAPPED, BLOCK_K
        )
        offsets = row * stride_row + col * stride_col
        k = load_rows(k_ptr, offsets, on_map, HEAD_DIM, BLOCK_D)
        v = load_rows(v_ptr, offsets, on_map, HEAD_DIM, BLOCK_D)
        logits = region_logits(
            q, k, bias_ptr, query, place, exists, on_map, win_row == nh - 1, win_col == nw - 1,
            NUM_KEYS, SCALE, WINDOW, SHIFT, SIZE, MARGIN, WRAPPED,
        )  # fmt: skip
        _, d_logits = logit_gradients(logits, log_sum, delta, d_out, v)
        acc = add_dot(acc, d_logits, k)
    return acc


@tuned()
@triton.jit(do_not_specialize=SIZES)
def query_gradient_kernel(
    # as in the forward kernel
    qkv_ptr,
    coarse_ptr,
    bias_ptr,
    out_ptr,
    log_sum_ptr,
    # (B, H, W, C) contiguous; to be written: (B, N, h, w*w); (B, H, W, 3C) contiguous
    d_out_ptr,
    delta_ptr,
    d_qkv_ptr,
    # strides of qkv
    stride_image,
    stride_row,
    stride_col,
    # sizes
    nh,
    nw,
    # constants
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    EXPAND: tl.constexpr,
    FOCAL_WINDOW: tl.constexpr,
    COARSE_LEVELS: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Query part of the gradient of ``qkv``; programs: (B, N, h, blocks of queries).

    Also stores ``delta``, the sum of output times its gradient, which the gradients of all logits
    of a query share.
    """
    CHANNELS: tl.constexpr = NUM_HEADS * HEAD_DIM
    head, window, query = query_block(NUM_HEADS, WINDOW, BLOCK_Q)
    image, win_row, win_col = locate(window, nh, nw)
    is_query = query < WINDOW * WINDOW

    q_ptr = qkv_ptr + image * stride_image + head * HEAD_DIM
    q_offsets = query_offsets(query, win_row, win_col, stride_row, stride_col, WINDOW)
    q = load_rows(q_ptr, q_offsets, is_query, HEAD_DIM, BLOCK_D)
    bias_ptr += head * WINDOW * WINDOW * NUM_KEYS

    first_token = image * nh * nw * WINDOW * WINDOW  # of the image
    tokens = query_offsets(query, win_row, win_col, nw * WINDOW, 1, WINDOW)
    first_out = first_token * CHANNELS + head * HEAD_DIM
    d_out = load_rows(d_out_ptr + first_out, tokens * CHANNELS, is_query, HEAD_DIM, BLOCK_D)
    out = load_rows(out_ptr + first_out, tokens * CHANNELS, is_query, HEAD_DIM, BLOCK_D)
    dtype = bias_ptr.dtype.element_ty
    delta = tl.sum(out.to(dtype) * d_out.to(dtype), 1)
    first_sum = (window.to(tl.int64) * NUM_HEADS + head) * WINDOW * WINDOW
    tl.store(delta_ptr + first_sum + query, delta, mask=is_query)
    log_sum = tl.load(log_sum_ptr + first_sum + query, mask=is_query, other=float('inf'))

    acc = tl.zeros((BLOCK_Q, BLOCK_D), dtype)
    acc = _query_gradient_of_region(
        acc, q, d_out, log_sum, delta, query, q_ptr + CHANNELS, q_ptr + 2 * CHANNELS,
        stride_row, stride_col,
        bias_ptr, win_row, win_col, nh, nw, nh * WINDOW, nw * WINDOW,
        NUM_KEYS, SCALE, HEAD_DIM, WINDOW, SHIFT,
        WINDOW + 2 * EXPAND, WINDOW, EXPAND, True, BLOCK_D, BLOCK_K,
    )  # fmt: skip
    coarse_tokens = nh * nw * (((1 << (2 * COARSE_LEVELS)) - 1) // 3)
    coarse_ptr += image * coarse_tokens * 2 * CHANNELS + head * HEAD_DIM
    bias_ptr += (WINDOW + 2 * EXPAND) * (WINDOW + 2 * EXPAND)
    for level in tl.static_range(COARSE_LEVELS):
        acc = _query_gradient_of_region(
            acc, q, d_out, log_sum, delta, query, coarse_ptr, coarse_ptr + CHANNELS,
            (nw << level) * 2 * CHANNELS, 2 * CHANNELS,
            bias_ptr, win_row, win_col, nh, nw, nh << level, nw << level,
            NUM_KEYS, SCALE, HEAD_DIM, WINDOW, 0,
            FOCAL_WINDOW + (1 << level) - 1, 1 << level, FOCAL_WINDOW // 2, False,
            BLOCK_D, BLOCK_K,
        )  # fmt: skip
        coarse_ptr += ((nh * nw) << (2 * level)) * 2 * CHANNELS
        bias_ptr += (FOCAL_WINDOW + (1 << level) - 1) * (FOCAL_WINDOW + (1 << level) - 1)

    d_q_ptr = d_qkv_ptr + first_token * 3 * CHANNELS + head * HEAD_DIM
    store_rows(d_q_ptr, tokens * 3 * CHANNELS, acc * SCALE, is_query, HEAD_DIM, BLOCK_D)
