# SPDX-License-Identifier: Apache-2.0
"""Focal attention as the released checkpoints compute it, key group by key group.

This is the specification: every other back end must give the same output and the same gradients.
It gathers each group the obvious way, keeps keys that occur twice, and spells the softmax out.
See ``geometry`` for the shape legend.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import (
    MASKED,
    FocalBias,
    FocalGeometry,
    coarse_bias,
    compute_dtype,
    own_bias,
    seam_mask,
    window_partition,
    window_reverse,
)


def neighbor_keys(kv: Tensor, geometry: FocalGeometry) -> Tensor:
    """``(B, H, W, 2C)`` -> the neighbours of each window, ``(B, N, 4(w^2-(w-e)^2), 2C)``."""
    groups = []
    for dy, dx, kept in geometry.moves:
        moved = torch.roll(kv, shifts=(-dy, -dx), dims=(1, 2))
        kept_index = torch.tensor(kept, device=kv.device)
        groups.append(window_partition(moved, geometry.window_size)[:, :, kept_index])
    return torch.cat(groups, dim=2)


def coarse_keys(kv: Tensor, geometry: FocalGeometry, level: int) -> Tensor:
    """``(B, 2^k nH, 2^k nW, 2C)`` -> the coarse region of each window, ``(B, N, F*F, 2C)``."""
    margin, side, step = geometry.focal_window // 2, geometry.region_size(level), 2**level
    padded = F.pad(kv, (0, 0, margin, margin, margin, margin))
    regions = padded.unfold(1, side, step).unfold(2, side, step)  # (B, nH, nW, 2C, F, F)
    return regions.flatten(4).transpose(3, 4).flatten(1, 2)


def coarse_mask(kv: Tensor, geometry: FocalGeometry, level: int) -> Tensor:
    """``MASKED`` for keys that ``coarse_keys`` took from its padding, else 0: ``(N, 1, F*F)``."""
    on_map = coarse_keys(kv.new_ones(1, *kv.shape[1:3], 1), geometry, level)
    return MASKED * (1 - on_map[0].transpose(1, 2))


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

    keys = [window_partition(kv, w)]
    biases = [own_bias(bias.own, w)[None]]  # (N or 1, h, w*w, keys of the group)
    if geometry.shift_size:
        biases[0] = biases[0] + seam_mask(geometry, height, width, qkv.device)[:, None]
    if bias.neighbors is not None:
        keys.append(neighbor_keys(kv, geometry))
        biases.append(bias.neighbors)
    for level, (level_kv, table) in enumerate(zip(coarse_kv, bias.coarse, strict=True)):
        level_kv = level_kv.to(dtype)
        keys.append(coarse_keys(level_kv, geometry, level))
        level_bias = coarse_bias(table, w, geometry.region_size(level))
        biases.append(level_bias + coarse_mask(level_kv, geometry, level)[:, None])

    def split_heads(x: Tensor) -> Tensor:  # (B, N, keys, C) -> (B, N, h, keys, d)
        return x.unflatten(-1, (num_heads, -1)).transpose(2, 3)

    k, v = (split_heads(x) for x in torch.cat(keys, dim=2).chunk(2, dim=-1))
    q = split_heads(window_partition(q, w))
    logits = q @ k.transpose(-2, -1) * scale  # (B, N, h, w*w, K)
    num_windows = logits.shape[1]
    logits = logits + torch.cat([x.expand(num_windows, -1, -1, -1) for x in biases], dim=-1)
    attention = F.dropout(logits.softmax(dim=-1), dropout_p)
    out = (attention @ v).transpose(2, 3).flatten(3)  # (B, N, w*w, C)
    return window_reverse(out, w, height, width).to(out_dtype)
