# SPDX-License-Identifier: Apache-2.0
"""Output and log-sum-exp."""

import triton
import triton.language as tl

from .blocks import (
    SIZES,
    add_dot,
    load_rows,
    locate,
    query_block,
    query_offsets,
    region_keys,
    region_logits,
    store_rows,
    tuned,
)


@triton.jit
def _attend_region(
    acc,
    peak,
    total,
    q,
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
    """Go on with the softmax over the keys of one region.

    Args:
        acc: Weighted sum of values so far, ``(BLOCK_Q, BLOCK_D)``.
        peak: Largest logit so far; weights are relative to it, ``(BLOCK_Q,)``.
        total: Sum of weights so far, ``(BLOCK_Q,)``.
    """
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
        new_peak = tl.maximum(peak, tl.max(logits, 1))  # finite: a block holds an existing key
        weights = tl.exp(logits - new_peak[:, None])
        decay = tl.exp(peak - new_peak)
        total = total * decay + tl.sum(weights, 1)
        acc = add_dot(acc * decay[:, None], weights, v)
        peak = new_peak
    return acc, peak, total


@tuned()
@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    # (B, H, W, 3C); (B, coarse tokens, 2C); (h, w*w, K); (B, H, W, C); (B, N, h, w*w)
    qkv_ptr,
    coarse_ptr,
    bias_ptr,
    out_ptr,
    log_sum_ptr,
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
    """Output and log-sum-exp of a block of queries; programs: (B, N, h, blocks of queries)."""
    CHANNELS: tl.constexpr = NUM_HEADS * HEAD_DIM
    head, window, query = query_block(NUM_HEADS, WINDOW, BLOCK_Q)
    image, win_row, win_col = locate(window, nh, nw)
    is_query = query < WINDOW * WINDOW

    q_ptr = qkv_ptr + image * stride_image + head * HEAD_DIM
    q_offsets = query_offsets(query, win_row, win_col, stride_row, stride_col, WINDOW)
    q = load_rows(q_ptr, q_offsets, is_query, HEAD_DIM, BLOCK_D)
    bias_ptr += head * WINDOW * WINDOW * NUM_KEYS

    acc = tl.zeros((BLOCK_Q, BLOCK_D), bias_ptr.dtype.element_ty)
    total = tl.zeros((BLOCK_Q,), bias_ptr.dtype.element_ty)
    peak = tl.full((BLOCK_Q,), float('-inf'), bias_ptr.dtype.element_ty)
    acc, peak, total = _attend_region(
        acc, peak, total, q, query, q_ptr + CHANNELS, q_ptr + 2 * CHANNELS, stride_row, stride_col,
        bias_ptr, win_row, win_col, nh, nw, nh * WINDOW, nw * WINDOW,
        NUM_KEYS, SCALE, HEAD_DIM, WINDOW, SHIFT,
        WINDOW + 2 * EXPAND, WINDOW, EXPAND, True, BLOCK_D, BLOCK_K,
    )  # fmt: skip
    coarse_tokens = nh * nw * (((1 << (2 * COARSE_LEVELS)) - 1) // 3)  # 1 + 4 + 16 ... a window
    coarse_ptr += image * coarse_tokens * 2 * CHANNELS + head * HEAD_DIM
    bias_ptr += (WINDOW + 2 * EXPAND) * (WINDOW + 2 * EXPAND)
    for level in tl.static_range(COARSE_LEVELS):
        acc, peak, total = _attend_region(
            acc, peak, total, q, query, coarse_ptr, coarse_ptr + CHANNELS,
            (nw << level) * 2 * CHANNELS, 2 * CHANNELS,
            bias_ptr, win_row, win_col, nh, nw, nh << level, nw << level,
            NUM_KEYS, SCALE, HEAD_DIM, WINDOW, 0,
            FOCAL_WINDOW + (1 << level) - 1, 1 << level, FOCAL_WINDOW // 2, False,
            BLOCK_D, BLOCK_K,
        )  # fmt: skip
        coarse_ptr += ((nh * nw) << (2 * level)) * 2 * CHANNELS
        bias_ptr += (FOCAL_WINDOW + (1 << level) - 1) * (FOCAL_WINDOW + (1 << level) - 1)

    out_ptr += image * nh * nw * WINDOW * WINDOW * CHANNELS + head * HEAD_DIM
    row_of_out = nw * WINDOW * CHANNELS
    out_offsets = query_offsets(query, win_row, win_col, row_of_out, CHANNELS, WINDOW)
    store_rows(out_ptr, out_offsets, acc / total[:, None], is_query, HEAD_DIM, BLOCK_D)
    log_sum_ptr += (window.to(tl.int64) * NUM_HEADS + head) * WINDOW * WINDOW
    tl.store(log_sum_ptr + query, peak + tl.log(total), mask=is_query)
