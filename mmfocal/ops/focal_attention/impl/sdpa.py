# SPDX-License-Identifier: Apache-2.0
"""Portable focal attention: one gather, then PyTorch's scaled dot-product attention.

Keys that occur twice are merged, own and neighbour keys form one wrapped square, and all keys of
all windows are gathered at once from a bank of tokens. It compiles, exports and runs wherever
PyTorch does. See ``geometry`` for the shape legend.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import (
    FocalBias,
    FocalGeometry,
    compute_dtype,
    key_index,
    merged_bias,
    merged_mask,
    window_partition,
    window_reverse,
)


def _gather_keys(
    kv: Tensor, coarse_kv: tuple[Tensor, ...], num_heads: int, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys and values of every window: two tensors ``(B, h * N, K, d)``."""
    tokens = [kv.flatten(1, 2), *(level.flatten(1, 2) for level in coarse_kv)]
    if coarse_kv:
        tokens.append(kv.new_zeros(kv.shape[0], 1, kv.shape[-1]))
    bank = torch.cat(tokens, dim=1).unflatten(-1, (2, num_heads, -1))
    bank = bank.permute(0, 3, 1, 2, 4).flatten(3)  # (B, h, tokens, 2d): k and v gathered together
    keys = bank.index_select(2, index.flatten()).unflatten(2, index.shape).flatten(1, 2)
    return keys.chunk(2, dim=-1)


def focal_attention(
    qkv: Tensor,
    coarse_kv: tuple[Tensor, ...],
    bias: FocalBias,
    geometry: FocalGeometry,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """See :func:`mmfocal.ops.focal_attention.focal_attention`."""
    _, height, width, channels = qkv.shape
    num_heads, w = bias.own.shape[1], geometry.window_size
    out_dtype, dtype = qkv.dtype, compute_dtype(qkv.dtype)
    q, kv = qkv.to(dtype).split([channels // 3, 2 * channels // 3], dim=-1)
    coarse_kv = tuple(level.to(dtype) for level in coarse_kv)

    # Heads and windows share one axis, so that the bias broadcasts over the batch without a copy.
    q = window_partition(q, w).unflatten(-1, (num_heads, -1))  # (B, N, w*w, h, d)
    num_windows = q.shape[1]
    q = q.permute(0, 3, 1, 2, 4).flatten(1, 2)  # (B, h * N, w*w, d)
    k, v = _gather_keys(kv, coarse_kv, num_heads, key_index(geometry, height, width, qkv.device))

    attn_bias = merged_bias(bias, geometry)[:, None].expand(-1, num_windows, -1, -1)
    mask = merged_mask(geometry, height, width, qkv.device)
    if mask is not None:
        attn_bias = attn_bias + mask.to(dtype)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=attn_bias.flatten(0, 1)[None], dropout_p=dropout_p, scale=scale
    )
    out = out.unflatten(1, (num_heads, num_windows)).permute(0, 2, 3, 1, 4).flatten(3)
    return window_reverse(out, w, height, width).to(out_dtype)
