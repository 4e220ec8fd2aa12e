# SPDX-License-Identifier: Apache-2.0
"""Portable focal attention: one gather, then PyTorch's scaled dot-product attention.

Duplicate keys are combined, window and neighbor keys form one wrapped square, and the keys of all
windows are gathered in one operation. This backend compiles, exports, and runs on every device of
PyTorch. See ``geometry`` for the shape legend.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocal import compat

from ..geometry import key_index, key_mask, window_partition, window_reverse
from ..inputs import FocalInputs


def _gather_keys(kv: Tensor, num_heads: int, index: Tensor) -> tuple[Tensor, Tensor]:
    """Gather keys and values ``(B, T, 2C)`` of every window: two tensors ``(B, h * N, K, d)``."""
    outside = kv.new_zeros(kv.shape[0], 1, kv.shape[-1])  # index T of key_index
    tokens = torch.cat([kv, outside], dim=1).unflatten(-1, (2, num_heads, -1))
    tokens = tokens.permute(0, 3, 1, 2, 4).flatten(3)  # (B, h, T + 1, 2d): one gather
    keys = tokens.index_select(2, index.flatten()).unflatten(2, index.shape).flatten(1, 2)
    return keys.chunk(2, dim=-1)


def _split_queries(q: Tensor, num_heads: int, window_size: int) -> Tensor:
    """``(B, H, W, C)`` -> ``(B, h * N, w*w, d)``."""
    q = window_partition(q, window_size).unflatten(-1, (num_heads, -1))  # (B, N, w*w, h, d)
    return q.permute(0, 3, 1, 2, 4).flatten(1, 2)


def _centered_bias(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Subtract the largest bias of each query before it is rounded to half precision.

    Softmax is invariant to this. Values near zero, which have large weights, are rounded finely.
    """
    if dtype == bias.dtype:
        return bias
    return bias - bias.detach().amax(dim=-1, keepdim=True)


def focal_attention(inputs: FocalInputs, bias: Tensor) -> Tensor:
    """See :func:`mmfocal.ops.focal_attention.focal_attention`.

    In half precision, products are accumulated in float32 and softmax is float32, as in PyTorch's
    attention. PyTorch's fused attention requires the bias in half precision.
    """
    geometry, (height, width), qkv = inputs.geometry, inputs.map_size, inputs.qkv
    if compat.VERSION < (2, 4):  # older attention rounds logits to half precision on CPUs
        qkv = qkv.to(bias.dtype)
    num_heads, w, channels = len(bias), geometry.window_size, qkv.shape[-1] // 3

    # Heads and windows share a dimension, so that the bias broadcasts over the batch uncopied.
    q = qkv[:, : height * width, :channels].unflatten(1, (height, width))
    q = _split_queries(q, num_heads, w)
    index = key_index(geometry, height, width, qkv.device)
    k, v = _gather_keys(qkv[..., channels:], num_heads, index)

    num_windows = len(index)
    attn_bias = _centered_bias(bias, qkv.dtype)[:, None].expand(-1, num_windows, -1, -1)
    mask = key_mask(geometry, height, width, inputs.shift, qkv.device)
    if mask is not None:
        attn_bias = attn_bias + mask.to(bias.dtype)
    attn_bias = attn_bias.flatten(0, 1)[None].to(qkv.dtype)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=attn_bias, dropout_p=inputs.dropout_p, scale=inputs.scale
    )
    out = out.unflatten(1, (num_heads, num_windows)).permute(0, 2, 3, 1, 4).flatten(3)
    return window_reverse(out, w, height, width).to(inputs.qkv.dtype)
