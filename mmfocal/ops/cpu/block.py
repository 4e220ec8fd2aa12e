# SPDX-License-Identifier: Apache-2.0
"""Focal blocks on CPUs: whole maps for training and autocast, else chunks of tokens or heads.

In inference, queries, keys and values are computed for as many heads as fit ``QKV_BYTES``, and
hidden layers for a chunk of tokens. Tensors of the size of the map are scratch memory or the
result, except for copies of maps that are rolled or cropped.
"""

from collections.abc import Callable, Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocal.ops.block import (
    BlockParameters,
    Projection,
    Steps,
    padded_size,
    plain_norm_mlp,
    run_block,
)
from mmfocal.ops.focal_attention.geometry import split_maps
from mmfocal.ops.focal_attention.impl.chunked import Call, ChunkedAttention

from . import memory
from .linear import linear
from .mlp import MlpParameters, is_worthwhile, mlp, norm_mlp, token_chunks
from .tokens import fill_tokens, pad_and_roll, pool_tokens

# Bytes of queries, keys and values that are computed at a time. On a large map this is one head.
QKV_BYTES = 32 * 2**20


def _mlp_parameters(p: BlockParameters) -> MlpParameters:
    return MlpParameters(*p.norm2, *p.fc1, *p.fc2)


def _norm_mlp(x: Tensor, p: BlockParameters, layer: Callable[..., Tensor]) -> Tensor:
    """Apply LayerNorm and MLP, in chunks of tokens where this is faster or saves memory."""
    parameters = _mlp_parameters(p)
    if is_worthwhile(x, parameters):
        return norm_mlp(x, parameters, p.eps2)
    return plain_norm_mlp(x, p, layer)


_STEPS = Steps(pool_tokens, linear, _norm_mlp)


def whole_block(x: Tensor, p: BlockParameters, shift: int) -> Tensor:
    """Compute whole maps, differentiably: ``(B, H, W, C)`` -> ``(B, H, W, C)``."""
    return run_block(x, p, shift, _STEPS)


def _norm_and_pool(x: Tensor, p: BlockParameters, shift: int) -> Tensor:
    """Return tokens ``(B, T, C)`` of the normalized, padded, rolled map, in scratch memory."""
    batch, height, width, dim = x.shape
    map_size = padded_size(x, p.geometry.window_size)
    tokens = memory.scratch('tokens', (batch, p.geometry.num_tokens(*map_size), dim), x)
    fine = split_maps(tokens, [map_size])[0]
    for image, row in product(range(batch), token_chunks(x[0], width * dim)):
        fine[image, row, :width] = F.layer_norm(x[image, row], (dim,), *p.norm1, p.eps1)
    pad_and_roll(fine, height, width, shift)
    weights, biases = [pool.weight for pool in p.pool], [pool.bias for pool in p.pool]
    fill_tokens(tokens, fine, weights, biases, p.geometry)
    return tokens


def _select_heads(qkv: Projection, num_heads: int, heads: slice) -> Projection:
    """Select the rows of some heads from the linear layer of queries, keys and values."""

    def rows(x: Tensor) -> Tensor:
        return x.unflatten(0, (3, num_heads, -1))[:, heads].flatten(0, 2)

    return Projection(rows(qkv.weight), None if qkv.bias is None else rows(qkv.bias))


def _project(tokens: Tensor, layer: Projection) -> Tensor:
    """Apply a linear layer to ``(B, T, C)``, in scratch memory."""
    shape = (*tokens.shape[:-1], len(layer.weight))
    out = memory.scratch('queries, keys and values', shape, tokens)
    tokens, projected = tokens.flatten(0, -2), out.flatten(0, -2)
    for chunk in token_chunks(tokens, len(layer.weight)):
        projected[chunk] = linear(tokens[chunk], *layer)
    return out


def _images_and_heads(tokens: Tensor, dim: int, num_heads: int) -> Iterator[tuple[slice, slice]]:
    """Return the slices of images and heads that are computed at a time."""
    image_bytes = 3 * tokens.shape[1] * dim * tokens.element_size()
    yield from product(
        memory.spans(len(tokens), QKV_BYTES // image_bytes),
        memory.spans(num_heads, QKV_BYTES * num_heads // image_bytes),
    )


def _attend(
    tokens: Tensor,
    map_size: tuple[int, int],
    p: BlockParameters,
    combined_bias: Tensor,
    shift: int,
) -> Tensor:
    """Project tokens and apply focal attention: ``(B, H, W, C')``, in scratch memory.

    ``C'`` differs from the channels of the tokens if heads have been removed.
    """
    batch, dim = len(tokens), len(p.qkv.weight) // 3
    num_heads = len(combined_bias)
    call = Call(map_size, p.geometry, p.scale, shift)
    out = memory.scratch('attended map', (batch, *map_size, dim), tokens)
    by_head = out.unflatten(-1, (num_heads, -1))
    for images, heads in _images_and_heads(tokens, dim, num_heads):
        qkv = _project(tokens[images], _select_heads(p.qkv, num_heads, heads))
        bias = combined_bias[heads]
        attention = ChunkedAttention(qkv, bias, call)
        attention.forward(by_head[images, ..., heads, :].flatten(-2))
    return out


def _add_branches(x: Tensor, attended: Tensor, p: BlockParameters) -> Tensor:
    """Project the attention output, add it to the map, then apply and add the MLP."""
    _, height, width, _ = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    tokens, result = x.flatten(0, 2), out.flatten(0, 2)
    attended = attended[:, :height, :width].flatten(0, 2)
    parameters = _mlp_parameters(p)
    for chunk in token_chunks(tokens, len(p.fc1.weight)):
        branch = linear(attended[chunk], *p.proj)
        branch = branch if p.gamma1 is None else branch * p.gamma1
        middle = branch.add_(tokens[chunk])
        branch = mlp(p.eps2, middle, *parameters)
        branch = branch if p.gamma2 is None else branch * p.gamma2
        torch.add(middle, branch, out=result[chunk])
    return out


def infer_block(x: Tensor, p: BlockParameters, shift: int, combined_bias: Tensor) -> Tensor:
    """Compute the same as :func:`whole_block`, without gradients and in less memory.

    Args:
        x: ``(B, H, W, C)``.
        p: Parameters of the block.
        shift: Number of tokens that the map is rolled by.
        combined_bias: Combined bias ``(h, w*w, K)`` of ``p.bias``.

    Returns:
        ``(B, H, W, C)``.
    """
    map_size = padded_size(x, p.geometry.window_size)
    tokens = _norm_and_pool(x, p, shift)
    attended = _attend(tokens, map_size, p, combined_bias, shift)
    if shift:
        attended = attended.roll((shift, shift), (1, 2))
    return _add_branches(x, attended, p)
