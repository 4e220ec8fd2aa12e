# SPDX-License-Identifier: Apache-2.0
"""A focal block for inference on CPUs: every layer a few tokens or heads at a time.

Queries, keys and values exist for as many heads as fit ``QKV_BYTES``, hidden layers for a chunk of
tokens. What has the size of the map is scratch memory or the result, but for copies of maps that
are rolled or cropped.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu
from .chunked_mlp import MlpParameters, mlp, token_chunks
from .focal_attention.geometry import FocalBias, FocalGeometry, compute_dtype, merged_bias
from .focal_attention.impl.chunked import ChunkedAttention
from .linear import linear

# Queries, keys and values that exist at a time: those of one head, if a map is large.
QKV_BYTES = 32 * 2**20


class Projection(NamedTuple):
    """A linear layer: ``(N, K)`` and ``(N)`` or None."""

    weight: Tensor
    bias: Tensor | None

    def select(self, num_heads: int, parts: slice, heads: slice) -> 'Projection':
        """Of one that makes queries, keys and values, the rows of some of these and some heads."""
        return Projection(
            *(
                None
                if p is None
                else p.unflatten(0, (3, num_heads, -1))[parts, heads].flatten(0, 2)
                for p in self
            )
        )


def padded_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, window_size: int) -> Tensor:
    """LayerNorm of ``(B, H, W, C)``, padded with zeros to window multiples; scratch memory."""
    batch, height, width, dim = x.shape
    size = [math.ceil(n / window_size) * window_size for n in (height, width)]
    normed = cpu.scratch('normed map', (batch, *size, dim), x)
    normed[:, height:] = 0
    normed[:, :height, width:] = 0
    for image, row in product(range(batch), token_chunks(x[0], width * dim)):
        normed[image, row, :width] = F.layer_norm(x[image, row], (dim,), weight, bias, eps)
    return normed


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer of ``(..., K)``; scratch memory."""
    out = cpu.scratch('queries, keys and values', (*x.shape[:-1], len(weight)), x)
    tokens, projected = x.flatten(0, -2), out.flatten(0, -2)
    for chunk in token_chunks(tokens, len(weight)):
        projected[chunk] = linear(tokens[chunk], weight, bias)
    return out


def _images_and_heads(x: Tensor, num_heads: int) -> Iterator[tuple[slice, slice]]:
    """Images and heads that are attended at a time."""
    image_bytes = 3 * x[0].numel() * x.element_size()
    yield from product(
        cpu.spans(len(x), QKV_BYTES // image_bytes),
        cpu.spans(num_heads, QKV_BYTES * num_heads // image_bytes),
    )


def attend(
    x: Tensor,
    coarse: Sequence[Tensor],
    qkv: Projection,
    bias: FocalBias,
    geometry: FocalGeometry,
    scale: float,
) -> Tensor:
    """Focal attention of the projections of a map.

    Args:
        x: ``(B, H, W, C)``, normalised; H and W are multiples of the window.
        coarse: Pooled maps of x, one per coarse level.
        qkv: Makes queries, keys and values.
        bias: Relative position bias tables.
        geometry: The key set.
        scale: Factor on the query-key products.

    Returns:
        ``(B, H, W, C)``, heads merged; scratch memory.
    """
    merged = merged_bias(bias.to(compute_dtype(x.dtype)), geometry)
    num_heads = len(merged)
    out = cpu.scratch('attended map', x.shape, x)
    by_head = out.unflatten(-1, (num_heads, -1))
    for images, heads in _images_and_heads(x, num_heads):
        fine = _project(x[images], *qkv.select(num_heads, slice(None), heads))
        kv = qkv.select(num_heads, slice(1, None), heads)
        coarse_kv = [linear(level[images], *kv) for level in coarse]
        attention = ChunkedAttention(fine, coarse_kv, merged[heads], geometry, scale)
        attention.forward(by_head[images, ..., heads, :].flatten(-2))
    return out


def add_branches(
    x: Tensor,
    attended: Tensor,
    proj: Projection,
    parameters: MlpParameters,
    eps: float,
    gammas: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """Project what was attended and add it to the map, then the MLP of that.

    Args:
        x: ``(B, H, W, C)``.
        attended: ``(B, H', W', C)``, perhaps padded.
        proj: Linear layer behind the attention.
        parameters: Of the MLP and the LayerNorm before it.
        eps: What LayerNorm adds to the variance.
        gammas: Scales ``(C)`` of the two branches.

    Returns:
        ``(B, H, W, C)``.
    """
    _, height, width, _ = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    tokens, result = x.flatten(0, 2), out.flatten(0, 2)
    attended = attended[:, :height, :width].flatten(0, 2)
    for chunk in token_chunks(tokens, len(parameters.weight1)):
        branch = linear(attended[chunk], *proj)
        branch = branch if gammas[0] is None else branch * gammas[0]
        middle = branch.add_(tokens[chunk])
        branch = mlp(eps, middle, *parameters)
        branch = branch if gammas[1] is None else branch * gammas[1]
        torch.add(middle, branch, out=result[chunk])
    return out
