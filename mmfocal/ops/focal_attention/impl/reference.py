# SPDX-License-Identifier: Apache-2.0
"""Focal attention as in the released code, one group of keys at a time.

This is the specification: all other backends have the same outputs and gradients. It gathers each
group of keys directly, keeps duplicate keys, and computes the softmax explicitly.
See ``geometry`` for the shape legend.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bias import relative_index
from ..geometry import (
    MASKED,
    FocalGeometry,
    compute_dtype,
    seam_mask,
    split_maps,
    window_partition,
    window_reverse,
)
from ..inputs import FocalInputs


def neighbor_keys(kv: Tensor, geometry: FocalGeometry) -> Tensor:
    """``(B, H, W, 2C)`` -> the neighbors of each window, ``(B, N, 4(w^2-(w-e)^2), 2C)``."""
    groups = []
    for dy, dx, kept in geometry.moves:
        moved = torch.roll(kv, shifts=(-dy, -dx), dims=(1, 2))
        kept_index = torch.tensor(kept, device=kv.device)
        groups.append(window_partition(moved, geometry.window_size)[:, :, kept_index])
    return torch.cat(groups, dim=2)


def coarse_keys(kv: Tensor, geometry: FocalGeometry, level: int) -> Tensor:
    """``(B, 2^k nH, 2^k nW, 2C)`` -> the coarse region of each window, ``(B, N, R*R, 2C)``."""
    region = geometry.regions[1 + level]
    padded = F.pad(kv, (0, 0, *(region.margin,) * 4))
    keys = padded.unfold(1, region.side, region.step).unfold(2, region.side, region.step)
    return keys.flatten(4).transpose(3, 4).flatten(1, 2)


def coarse_mask(kv: Tensor, geometry: FocalGeometry, level: int) -> Tensor:
    """Return ``MASKED`` for keys in the padding of ``coarse_keys``, else 0: ``(N, 1, R*R)``."""
    on_map = coarse_keys(kv.new_ones(1, *kv.shape[1:3], 1), geometry, level)
    return MASKED * (1 - on_map[0].transpose(1, 2))


def relative_bias(table: Tensor, window_size: int, side: int) -> Tensor:
    """Return the entry of ``(h, (w+R-1)^2)`` for each query and key: ``(h, w*w, R*R)``."""
    return table[:, relative_index(window_size, side, table.device)]


def focal_attention(inputs: FocalInputs, _: None = None) -> Tensor:
    """See :func:`mmfocal.ops.focal_attention.focal_attention`."""
    geometry, bias, (height, width) = inputs.geometry, inputs.bias, inputs.map_size
    num_heads, w = bias.window.shape[1], geometry.window_size
    channels = inputs.qkv.shape[-1] // 3
    qkv = inputs.qkv.to(compute_dtype(inputs.qkv.dtype))
    fine, *coarse = split_maps(qkv, geometry.map_sizes(height, width))
    q, kv = fine.split([channels, 2 * channels], dim=-1)

    keys = [window_partition(kv, w)]
    biases = [relative_bias(bias.window.t(), w, w)[None]]  # (N or 1, h, w*w, keys of the group)
    if inputs.shift:
        seam = seam_mask(geometry, height, width, inputs.shift, qkv.device)
        biases[0] = biases[0] + seam[:, None]
    if bias.neighbors is not None:
        keys.append(neighbor_keys(kv, geometry))
        biases.append(bias.neighbors)
    for level, (level_qkv, table) in enumerate(zip(coarse, bias.coarse, strict=True)):
        level_kv = level_qkv[..., channels:]
        keys.append(coarse_keys(level_kv, geometry, level))
        level_bias = relative_bias(table, w, geometry.regions[1 + level].side)
        biases.append(level_bias + coarse_mask(level_kv, geometry, level)[:, None])

    def split_heads(x: Tensor) -> Tensor:  # (B, N, keys, C) -> (B, N, h, keys, d)
        return x.unflatten(-1, (num_heads, -1)).transpose(2, 3)

    k, v = (split_heads(x) for x in torch.cat(keys, dim=2).chunk(2, dim=-1))
    q = split_heads(window_partition(q, w))
    logits = q @ k.transpose(-2, -1) * inputs.scale  # (B, N, h, w*w, keys)
    num_windows = logits.shape[1]
    logits = logits + torch.cat([x.expand(num_windows, -1, -1, -1) for x in biases], dim=-1)
    attention = F.dropout(logits.softmax(dim=-1), inputs.dropout_p)
    out = (attention @ v).transpose(2, 3).flatten(3)  # (B, N, w*w, C)
    return window_reverse(out, w, height, width).to(inputs.qkv.dtype)
