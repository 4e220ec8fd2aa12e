# SPDX-License-Identifier: Apache-2.0
"""Forward kernel: output and log-sum-exp."""

from typing import NamedTuple

import triton
import triton.language as tl

from .blocks import (
    LOG2_E,
    UNSPECIALIZED,
    Grid,
    Heads,
    Tokens,
    add_dot,
    bias_of,
    count_blocks,
    find_key_block,
    find_keys,
    find_query_block,
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
)
from .bundle import bundle


@bundle
class Results(NamedTuple):
    """Output, ``(B, H, W, C)``, and log-sum-exp of the logits, ``(B, h, H, W)``."""

    out_ptr: tl.tensor
    log_sum_ptr: tl.tensor


@triton.jit
def attend(qkv, bias_ptr, results, grid, heads, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):
    """Compute a block of queries; see ``forward_kernel``."""
    AREA: tl.constexpr = grid.WINDOW_SIZE * grid.WINDOW_SIZE
    Q_BLOCKS: tl.constexpr = (AREA + BLOCK_Q - 1) // BLOCK_Q
    program, windows = tl.program_id(0), grid.nh * grid.nw
    head = program // (Q_BLOCKS * windows) % heads.num_heads
    number = program // Q_BLOCKS % windows
    number += program // (Q_BLOCKS * windows * heads.num_heads) * windows
    window = locate(number, grid)
    queries = find_query_block(program % Q_BLOCKS * BLOCK_Q, grid, BLOCK_Q)
    tokens = query_tokens(queries, window, grid)
    q = load_rows(rows_of(qkv, window.image, head, 0, heads), tokens, queries.exists, heads)
    head_bias = bias_of(bias_ptr, head, grid)

    dtype: tl.constexpr = bias_ptr.dtype.element_ty
    acc = tl.zeros((BLOCK_Q, heads.BLOCK_D), dtype)
    total = tl.zeros((BLOCK_Q,), dtype)
    peak = tl.full((BLOCK_Q,), float('-inf'), dtype)
    for key_block in range(0, count_blocks(grid, BLOCK_K)):
        block = find_key_block(key_block, grid, BLOCK_K)
        k_tokens, on_map = find_keys(block, window)
        keys = load_keys(qkv, k_tokens, on_map, window.image, head, heads)
        bias = load_bias(head_bias, queries, block)
        logits = tl.dot(q, tl.trans(keys.k), input_precision='ieee') * (heads.scale * LOG2_E)
        logits = logits + bias + key_mask(on_map)[None, :]
        if grid.SHIFT > 0:
            logits += seam_mask(queries.position, block, window, grid)
        new_peak = tl.maximum(peak, tl.max(logits, 1))  # finite: a block holds an existing key
        weights = tl.exp2(logits - new_peak[:, None])
        decay = tl.exp2(peak - new_peak)
        total = total * decay + tl.sum(weights, 1)
        acc = add_dot(acc * decay[:, None], weights, keys.v)
        peak = new_peak

    channels = heads.num_heads * heads.HEAD_DIM
    out = Tokens(results.out_ptr, windows * AREA * channels, channels)
    rows = rows_of(out, window.image, head, 0, heads)
    store_rows(rows, tokens, acc / total[:, None], queries.exists, heads)
    pointers = sum_pointers(results.log_sum_ptr, tokens, window.image, head, grid, heads)
    tl.store(pointers, peak + tl.log2(total), mask=queries.exists)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward_kernel(
    # (B, T, 3C); (h, w*w, columns); written: (B, H, W, C); (B, h, H, W)
    qkv_ptr,
    bias_ptr,
    out_ptr,
    log_sum_ptr,
    stride_image,
    stride_token,
    # numbers
    nh,
    nw,
    num_heads,
    expand_size,
    focal_window,
    scale,
    # constants
    WINDOW_SIZE: tl.constexpr,
    FOCAL_LEVEL: tl.constexpr,
    SHIFT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute output and log-sum-exp. Programs: (B, h, N, blocks of queries)."""
    attend(
        Tokens(qkv_ptr, stride_image, stride_token),
        bias_ptr,
        Results(out_ptr, log_sum_ptr),
        Grid(nh, nw, expand_size, focal_window, WINDOW_SIZE, FOCAL_LEVEL, SHIFT),
        Heads(num_heads, scale, HEAD_DIM, BLOCK_D),
        BLOCK_Q,
        BLOCK_K,
    )
