# SPDX-License-Identifier: Apache-2.0
"""What the kernels share: tuning, and what they do with blocks of queries and keys."""

import torch
import triton
import triton.language as tl

from mmfocal.ops.focal_attention import geometry

from .. import INTERPRETED

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
def load_rows(ptr, offsets, exist, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """One row of ``HEAD_DIM`` channels per offset, zeros elsewhere: ``(rows, BLOCK_D)``."""
    channel = tl.arange(0, BLOCK_D)
    mask = exist[:, None] & (channel < HEAD_DIM)[None, :]
    return tl.load(ptr + offsets[:, None] + channel[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(ptr, offsets, values, exist, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The reverse of ``load_rows``, in the dtype that the pointer has."""
    channel = tl.arange(0, BLOCK_D)
    mask = exist[:, None] & (channel < HEAD_DIM)[None, :]
    pointers = ptr + offsets[:, None] + channel[None, :]
    tl.store(pointers, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def add_rows(ptr, offsets, values, exist, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Add to memory that other programs add to at the same time."""
    channel = tl.arange(0, BLOCK_D)
    mask = exist[:, None] & (channel < HEAD_DIM)[None, :]
    pointers = ptr + offsets[:, None] + channel[None, :]
    tl.atomic_add(pointers, values.to(ptr.dtype.element_ty), mask=mask, sem='relaxed')


@triton.jit
def add_dot(acc, a, b):
    """``acc + a @ b``, with ``a`` rounded to the dtype of ``b``."""
    return tl.dot(a.to(b.dtype), b, acc, input_precision='ieee', out_dtype=acc.dtype)


@triton.jit
def query_offsets(query, win_row, win_col, stride_row, stride_col, WINDOW: tl.constexpr):
    """Where the queries of a window lie in their image: ``(BLOCK_Q,)``."""
    row = win_row * WINDOW + query // WINDOW
    col = win_col * WINDOW + query % WINDOW
    return row * stride_row + col * stride_col


@triton.jit
def region_keys(
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
def region_logits(
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
def logit_gradients(logits, log_sum, delta, d_out, v):
    """Weights and gradients of the logits: twice ``(BLOCK_Q, BLOCK_K)``."""
    weights = tl.exp(logits - log_sum[:, None])
    d_weights = tl.dot(d_out, tl.trans(v), input_precision='ieee')
    return weights, weights * (d_weights - delta[:, None])


@triton.jit
def locate(window, nh, nw):
    """Image, row and column of a window counted over all images; the image as 64-bit integer."""
    image = window // (nh * nw)
    row = window // nw % nh
    return image.to(tl.int64), row, window % nw


@triton.jit
def query_block(NUM_HEADS: tl.constexpr, WINDOW: tl.constexpr, BLOCK_Q: tl.constexpr):
    """What a program computes if programs are (B, N, h, blocks of queries).

    Returns:
        Head, window counted over all images, and its queries ``(BLOCK_Q,)``.
    """
    Q_BLOCKS: tl.constexpr = (WINDOW * WINDOW + BLOCK_Q - 1) // BLOCK_Q
    program = tl.program_id(0)
    query = program % Q_BLOCKS * BLOCK_Q + tl.arange(0, BLOCK_Q)
    return program // Q_BLOCKS % NUM_HEADS, program // (Q_BLOCKS * NUM_HEADS), query
