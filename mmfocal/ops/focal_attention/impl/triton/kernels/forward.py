# SPDX-License-Identifier: Apache-2.0
"""Forward kernel: output and log-sum-exp."""

import triton
import triton.language as tl

from .blocks import (
    LOG2_E,
    SIZES,
    add_dot,
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


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    # (B, T, 3C); (h, w*w, columns); written: (B, H, W, C); (B, h, H, W)
    qkv_ptr,
    bias_ptr,
    out_ptr,
    log_sum_ptr,
    stride_image,
    stride_token,
    # sizes
    nh,
    nw,
    num_heads,
    expand_size,
    focal_window,
    # constants
    WINDOW: tl.constexpr,
    COARSE_LEVELS: tl.constexpr,
    SHIFT: tl.constexpr,
    SCALE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute output and log-sum-exp. Programs: (B, h, N, blocks of queries)."""
    AREA: tl.constexpr = WINDOW * WINDOW
    Q_BLOCKS: tl.constexpr = (AREA + BLOCK_Q - 1) // BLOCK_Q
    program, channels = tl.program_id(0), num_heads * HEAD_DIM
    number, head = program // Q_BLOCKS % (nh * nw), program // (Q_BLOCKS * nh * nw) % num_heads
    number += program // (Q_BLOCKS * nh * nw * num_heads) * (nh * nw)
    window = locate(number, nh, nw)
    query = program % Q_BLOCKS * BLOCK_Q + tl.arange(0, BLOCK_Q)
    is_query, own_query = query < AREA, tl.minimum(query, AREA - 1)
    tokens = query_tokens(own_query, window, nw, WINDOW)

    q_ptr = qkv_ptr + window.image * stride_image + head * HEAD_DIM
    q = load_rows(q_ptr, tokens, stride_token, is_query, HEAD_DIM, BLOCK_D)
    last = region_at(COARSE_LEVELS, nh, nw, expand_size, focal_window, WINDOW, COARSE_LEVELS)
    num_columns = count_columns(last)
    bias_ptr += head * AREA * num_columns

    dtype: tl.constexpr = bias_ptr.dtype.element_ty
    acc = tl.zeros((BLOCK_Q, BLOCK_D), dtype)
    total = tl.zeros((BLOCK_Q,), dtype)
    peak = tl.full((BLOCK_Q,), float('-inf'), dtype)
    blocks = count_blocks(expand_size, focal_window, WINDOW, COARSE_LEVELS, BLOCK_K)
    for block in range(0, blocks):
        keys = key_block(block, nh, nw, expand_size, focal_window, WINDOW, COARSE_LEVELS, BLOCK_K)
        token, on_map = find_keys(keys, window)
        k = load_rows(q_ptr + channels, token, stride_token, on_map, HEAD_DIM, BLOCK_D)
        v = load_rows(q_ptr + 2 * channels, token, stride_token, on_map, HEAD_DIM, BLOCK_D)
        bias = load_bias(bias_ptr, own_query, keys, num_columns)
        logits = tl.dot(q, tl.trans(k), input_precision='ieee') * (SCALE * LOG2_E) + bias
        logits += key_mask(on_map)[None, :]
        if SHIFT > 0:
            logits += seam_mask(query, keys, window, WINDOW, SHIFT)
        new_peak = tl.maximum(peak, tl.max(logits, 1))  # finite: a block holds an existing key
        weights = tl.exp2(logits - new_peak[:, None])
        decay = tl.exp2(peak - new_peak)
        total = total * decay + tl.sum(weights, 1)
        acc = add_dot(acc * decay[:, None], weights, v)
        peak = new_peak

    image_tokens = nh * nw * AREA
    out_ptr += window.image * image_tokens * channels + head * HEAD_DIM
    store_rows(out_ptr, tokens, channels, acc / total[:, None], is_query, HEAD_DIM, BLOCK_D)
    log_sum_ptr += (window.image * num_heads + head) * image_tokens
    tl.store(log_sum_ptr + tokens, peak + tl.log2(total), mask=is_query)
