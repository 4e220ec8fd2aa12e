# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of focal attention, forward and backward.

A program computes one head. Keys form square *regions*, one of the fine map and one of each coarse
map; what a kernel must know of a region are its constants:

    SIZE      side of the region in keys (R or F); keys are counted row-major: their *place*
    STEP      distance between the regions of adjacent windows
    MARGIN    by how much a region starts before its window
    WRAPPED   whether the map continues on its far side (fine) or with masked zeros (coarse)
    SHIFT     by how much the map was rolled; 0 for coarse regions, which know no seam

Block values are ``(BLOCK_Q, BLOCK_D)`` for queries, ``(BLOCK_K, BLOCK_D)`` for keys and
``(BLOCK_Q, BLOCK_K)`` for logits. All blocks are powers of two: queries beyond ``w*w``, keys
beyond the region and channels beyond ``d`` are loaded as zeros and never stored; the weights of
keys that do not exist are zero, because their logits are -inf.

Dot products take their operands as they lie in memory and sum in the dtype of the bias. Offsets
within an image fit 32 bits, offsets of an image need not.

See ``geometry`` for the shape legend.
"""

import torch
import triton
import triton.language as tl

from ... import geometry
from . import INTERPRETED

MASKED = tl.constexpr(geometry.MASKED)

# What a program keeps on the chip grows with BLOCK_K and num_stages; the first configuration is
# the smallest one, and the one that serves where results must not depend on measurements.
CONFIGS = [
    triton.Config({'BLOCK_K': 32}, num_warps=4, num_stages=1),
    triton.Config({'BLOCK_K': 32}, num_warps=4, num_stages=2),
    triton.Config({'BLOCK_K': 64}, num_warps=4, num_stages=2),
    triton.Config({'BLOCK_K': 64}, num_warps=8, num_stages=2),
]
# Autotuning distinguishes the dtypes of tensors by itself.
KEY = ['BLOCK_D', 'BLOCK_Q']
# Sizes change from image to image: no new kernel for sizes that happen to be 1 or multiples of 16.
SIZES = ['nh', 'nw', 'num_windows', 'windows_per_strip', 'map_rows', 'map_cols']


def _fitting(configs: list[triton.Config], args: dict, **_) -> list[triton.Config]:
    """Configurations worth a trial: in float32 large blocks do not fit the registers."""
    largest = 32 if args['qkv_ptr'].dtype == torch.float32 else 64
    return [config for config in configs if config.kwargs['BLOCK_K'] <= largest]


def tuned(restore_value: list[str] | None = None):
    """Decorate a kernel: the fastest of ``CONFIGS``; the interpreter has no use for them."""
    if INTERPRETED:
        return triton.autotune([triton.Config({'BLOCK_K': 128})], key=KEY)
    prune = {'early_config_prune': _fitting}
    return triton.autotune(CONFIGS, key=KEY, prune_configs_by=prune, restore_value=restore_value)


@triton.jit
def _load_rows(ptr, offsets, exist, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """One row of ``HEAD_DIM`` channels per offset, zeros elsewhere: ``(rows, BLOCK_D)``."""
    channel = tl.arange(0, BLOCK_D)
    mask = exist[:, None] & (channel < HEAD_DIM)[None, :]
    return tl.load(ptr + offsets[:, None] + channel[None, :], mask=mask, other=0.0)


@triton.jit
def _store_rows(ptr, offsets, values, exist, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The reverse of ``_load_rows``, in the dtype that the pointer has."""
    channel = tl.arange(0, BLOCK_D)
    mask = exist[:, None] & (channel < HEAD_DIM)[None, :]
    pointers = ptr + offsets[:, None] + channel[None, :]
    tl.store(pointers, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _add_rows(ptr, offsets, values, exist, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Add to memory that other programs add to at the same time."""
    channel = tl.arange(0, BLOCK_D)
    mask = exist[:, None] & (channel < HEAD_DIM)[None, :]
    pointers = ptr + offsets[:, None] + channel[None, :]
    tl.atomic_add(pointers, values.to(ptr.dtype.element_ty), mask=mask, sem='relaxed')


@triton.jit
def _add_dot(acc, a, b):
    """``acc + a @ b``, with ``a`` rounded to the dtype of ``b``."""
    return tl.dot(a.to(b.dtype), b, acc, input_precision='ieee', out_dtype=acc.dtype)


@triton.jit
def _query_offsets(query, win_row, win_col, stride_row, stride_col, WINDOW: tl.constexpr):
    """Where the queries of a window lie in their image: ``(BLOCK_Q,)``."""
    row = win_row * WINDOW + query // WINDOW
    col = win_col * WINDOW + query % WINDOW
    return row * stride_row + col * stride_col


@triton.jit
def _region_keys(
    start,
    win_row,
    win_col,
    map_rows,
    map_cols,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
    MARGIN: tl.constexpr,
    WRAPPED: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Keys of a window's region from place ``start`` on.

    Returns:
        Place, row and column on the map, whether the key exists, and whether it lies on the map;
        each ``(BLOCK_K,)``.
    """
    place = start + tl.arange(0, BLOCK_K)
    exists = place < SIZE * SIZE
    row = win_row * STEP - MARGIN + place // SIZE
    col = win_col * STEP - MARGIN + place % SIZE
    if WRAPPED:  # once is enough: expand_size <= window_size <= map
        row = tl.where(row < 0, row + map_rows, tl.where(row < map_rows, row, row - map_rows))
        col = tl.where(col < 0, col + map_cols, tl.where(col < map_cols, col, col - map_cols))
        on_map = exists
    else:
        on_map = exists & (row >= 0) & (row < map_rows) & (col >= 0) & (col < map_cols)
    return place, row, col, exists, on_map


@triton.jit
def _across_seam(
    query,
    place,
    last_row,
    last_col,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    SIZE: tl.constexpr,
    MARGIN: tl.constexpr,
):
    """Own keys on the other side of the seam, which cuts the last windows only.

    See ``geometry.seam_mask``.
    """
    query_row, query_col = query // WINDOW, query % WINDOW
    key_row, key_col = place // SIZE - MARGIN, place % SIZE - MARGIN
    own = (key_row >= 0) & (key_row < WINDOW) & (key_col >= 0) & (key_col < WINDOW)
    above, left = WINDOW - SHIFT, WINDOW - SHIFT  # rows and columns before the seam
    other_row = (query_row >= above)[:, None] != (key_row >= above)[None, :]
    other_col = (query_col >= left)[:, None] != (key_col >= left)[None, :]
    return own[None, :] & ((last_row & other_row) | (last_col & other_col))


@triton.jit
def _logits(
    q,
    k,
    bias_ptr,  # of the head and the region: (w*w, K), of which SIZE * SIZE columns
    query,
    place,
    exists,
    on_map,
    last_row,
    last_col,
    NUM_KEYS: tl.constexpr,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    SIZE: tl.constexpr,
    MARGIN: tl.constexpr,
    WRAPPED: tl.constexpr,
):
    """Logits with bias and masks, -inf for keys that do not exist: ``(BLOCK_Q, BLOCK_K)``."""
    logits = tl.dot(q, tl.trans(k), input_precision='ieee') * SCALE
    mask = (query < WINDOW * WINDOW)[:, None] & exists[None, :]
    bias_pointers = bias_ptr + query[:, None] * NUM_KEYS + place[None, :]
    logits += tl.load(bias_pointers, mask=mask, other=0.0)
    if not WRAPPED:
        logits += tl.where(on_map, 0.0, MASKED)[None, :]
    if SHIFT > 0:
        seam = _across_seam(query, place, last_row, last_col, WINDOW, SHIFT, SIZE, MARGIN)
        logits += tl.where(seam, MASKED, 0.0)
    return tl.where(exists[None, :], logits, float('-inf'))


@triton.jit
def _logit_gradients(logits, log_sum, delta, d_out, v):
    """Weights and gradients of the logits: twice ``(BLOCK_Q, BLOCK_K)``."""
    weights = tl.exp(logits - log_sum[:, None])
    d_weights = tl.dot(d_out, tl.trans(v), input_precision='ieee')
    return weights, weights * (d_weights - delta[:, None])


@triton.jit
def _locate(window, nh, nw):
    """Image, row and column of a window counted over all images; the image as 64-bit integer."""
    image = window // (nh * nw)
    row = window // nw % nh
    return image.to(tl.int64), row, window % nw


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
        place, row, col, exists, on_map = _region_keys(
            start, win_row, win_col, map_rows, map_cols, SIZE, STEP, MARGIN, WRAPPED, BLOCK_K
        )
        offsets = row * stride_row + col * stride_col
        k = _load_rows(k_ptr, offsets, on_map, HEAD_DIM, BLOCK_D)
        v = _load_rows(v_ptr, offsets, on_map, HEAD_DIM, BLOCK_D)
        logits = _logits(
            q, k, bias_ptr, query, place, exists, on_map, win_row == nh - 1, win_col == nw - 1,
            NUM_KEYS, SCALE, WINDOW, SHIFT, SIZE, MARGIN, WRAPPED,
        )  # fmt: skip
        new_peak = tl.maximum(peak, tl.max(logits, 1))  # finite: a block holds an existing key
        weights = tl.exp(logits - new_peak[:, None])
        decay = tl.exp(peak - new_peak)
        total = total * decay + tl.sum(weights, 1)
        acc = _add_dot(acc * decay[:, None], weights, v)
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
    Q_BLOCKS: tl.constexpr = (WINDOW * WINDOW + BLOCK_Q - 1) // BLOCK_Q
    program = tl.program_id(0)
    head = program // Q_BLOCKS % NUM_HEADS
    window = program // (Q_BLOCKS * NUM_HEADS)
    image, win_row, win_col = _locate(window, nh, nw)
    query = program % Q_BLOCKS * BLOCK_Q + tl.arange(0, BLOCK_Q)
    is_query = query < WINDOW * WINDOW

    q_ptr = qkv_ptr + image * stride_image + head * HEAD_DIM
    q_offsets = _query_offsets(query, win_row, win_col, stride_row, stride_col, WINDOW)
    q = _load_rows(q_ptr, q_offsets, is_query, HEAD_DIM, BLOCK_D)
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
    out_offsets = _query_offsets(query, win_row, win_col, row_of_out, CHANNELS, WINDOW)
    _store_rows(out_ptr, out_offsets, acc / total[:, None], is_query, HEAD_DIM, BLOCK_D)
    log_sum_ptr += (window.to(tl.int64) * NUM_HEADS + head) * WINDOW * WINDOW
    tl.store(log_sum_ptr + query, peak + tl.log(total), mask=is_query)


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
        place, row, col, exists, on_map = _region_keys(
            start, win_row, win_col, map_rows, map_cols, SIZE, STEP, MARGIN, WRAPPED, BLOCK_K
        )
        offsets = row * stride_row + col * stride_col
        k = _load_rows(k_ptr, offsets, on_map, HEAD_DIM, BLOCK_D)
        v = _load_rows(v_ptr, offsets, on_map, HEAD_DIM, BLOCK_D)
        logits = _logits(
            q, k, bias_ptr, query, place, exists, on_map, win_row == nh - 1, win_col == nw - 1,
            NUM_KEYS, SCALE, WINDOW, SHIFT, SIZE, MARGIN, WRAPPED,
        )  # fmt: skip
        _, d_logits = _logit_gradients(logits, log_sum, delta, d_out, v)
        acc = _add_dot(acc, d_logits, k)
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
    Q_BLOCKS: tl.constexpr = (WINDOW * WINDOW + BLOCK_Q - 1) // BLOCK_Q
    program = tl.program_id(0)
    head = program // Q_BLOCKS % NUM_HEADS
    window = program // (Q_BLOCKS * NUM_HEADS)
    image, win_row, win_col = _locate(window, nh, nw)
    query = program % Q_BLOCKS * BLOCK_Q + tl.arange(0, BLOCK_Q)
    is_query = query < WINDOW * WINDOW

    q_ptr = qkv_ptr + image * stride_image + head * HEAD_DIM
    q_offsets = _query_offsets(query, win_row, win_col, stride_row, stride_col, WINDOW)
    q = _load_rows(q_ptr, q_offsets, is_query, HEAD_DIM, BLOCK_D)
    bias_ptr += head * WINDOW * WINDOW * NUM_KEYS

    first_token = image * nh * nw * WINDOW * WINDOW  # of the image
    tokens = _query_offsets(query, win_row, win_col, nw * WINDOW, 1, WINDOW)
    first_out = first_token * CHANNELS + head * HEAD_DIM
    d_out = _load_rows(d_out_ptr + first_out, tokens * CHANNELS, is_query, HEAD_DIM, BLOCK_D)
    out = _load_rows(out_ptr + first_out, tokens * CHANNELS, is_query, HEAD_DIM, BLOCK_D)
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
    _store_rows(d_q_ptr, tokens * 3 * CHANNELS, acc * SCALE, is_query, HEAD_DIM, BLOCK_D)


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
    offsets = _query_offsets(query, win_row, win_col, stride_row, stride_col, WINDOW)
    q_ptr = qkv_ptr + image * stride_image + head * HEAD_DIM
    q = _load_rows(q_ptr, offsets, is_query, HEAD_DIM, BLOCK_D)
    tokens = _query_offsets(query, win_row, win_col, nw * WINDOW, 1, WINDOW)
    first_token = image * nh * nw * WINDOW * WINDOW
    d_out_ptr += (first_token * NUM_HEADS + head) * HEAD_DIM
    d_out = _load_rows(d_out_ptr, tokens * NUM_HEADS * HEAD_DIM, is_query, HEAD_DIM, BLOCK_D)
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
        image, win_row, win_col = _locate(window, nh, nw)
        q, d_out, log_sum, delta = _load_queries(
            qkv_ptr, d_out_ptr, log_sum_ptr, delta_ptr, stride_image, stride_row, stride_col,
            query, head, image, win_row, win_col, nh, nw, NUM_HEADS, HEAD_DIM, WINDOW, BLOCK_D,
        )  # fmt: skip
        place, row, col, exists, on_map = _region_keys(
            start, win_row, win_col, map_rows, map_cols, SIZE, STEP, MARGIN, WRAPPED, BLOCK_K
        )
        k_ptr = kv_ptr + image * kv_stride_image
        offsets = row * kv_stride_row + col * kv_stride_col
        k = _load_rows(k_ptr, offsets, on_map, HEAD_DIM, BLOCK_D)
        v = _load_rows(k_ptr + CHANNELS, offsets, on_map, HEAD_DIM, BLOCK_D)
        logits = _logits(
            q, k, bias_ptr, query, place, exists, on_map, win_row == nh - 1, win_col == nw - 1,
            NUM_KEYS, SCALE, WINDOW, SHIFT, SIZE, MARGIN, WRAPPED,
        )  # fmt: skip
        weights, d_logits = _logit_gradients(logits, log_sum, delta, d_out, v)
        d_bias += d_logits
        if ADD_KEYS:
            d_k = tl.dot(tl.trans(d_logits.to(q.dtype)), q, input_precision='ieee') * SCALE
            d_v = tl.dot(tl.trans(weights.to(q.dtype)), d_out, input_precision='ieee')
            d_k_ptr = d_kv_ptr + image * d_kv_stride_image
            offsets = row * d_kv_stride_row + col * d_kv_stride_col
            _add_rows(d_k_ptr, offsets, d_k, on_map, HEAD_DIM, BLOCK_D)
            _add_rows(d_k_ptr + CHANNELS, offsets, d_v, on_map, HEAD_DIM, BLOCK_D)

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
    k = _load_rows(k_ptr, offsets, on_map, HEAD_DIM, BLOCK_D)
    v = _load_rows(k_ptr + CHANNELS, offsets, on_map, HEAD_DIM, BLOCK_D)
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
                logits = _logits(
                    q, k, bias_ptr, query, place, seen, seen, win_row == nh - 1, win_col == nw - 1,
                    NUM_KEYS, SCALE, WINDOW, SHIFT, SIZE, MARGIN, WRAPPED,
                )  # fmt: skip
                weights, d_logits = _logit_gradients(logits, log_sum, delta, d_out, v)
                d_k = _add_dot(d_k, tl.trans(d_logits), q)
                d_v = _add_dot(d_v, tl.trans(weights), d_out)

    d_k_ptr = d_kv_ptr + image * d_kv_stride_image + head * HEAD_DIM
    offsets = row * d_kv_stride_row + col * d_kv_stride_col
    _store_rows(d_k_ptr, offsets, d_k * SCALE, on_map, HEAD_DIM, BLOCK_D)
    _store_rows(d_k_ptr + CHANNELS, offsets, d_v, on_map, HEAD_DIM, BLOCK_D)
