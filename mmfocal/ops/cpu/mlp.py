# SPDX-License-Identifier: Apache-2.0
"""LayerNorm and MLP for CPUs: a few tokens at a time, so that the hidden layer is never whole.

It is the largest tensor of a block: four times the map, and autograd would keep two of it. Here
autograd keeps the input only; the backward pass computes a chunk again and differentiates it
before it turns to the next one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocal import compat
from mmfocal.ops.focal_attention.geometry import compute_dtype

from . import memory
from .linear import linear

# Hidden values that are computed at a time: few enough for a level 3 cache, and enough tokens, at
# any width of the paper's, to multiply at full speed.
CHUNK_BYTES = 8 * 2**20
# The smallest hidden layer, of one image, to compute twice in training: that of large images,
# where memory is short and fewer of them are no remedy. Of Focal-T's stages at 784x1344 (96, 48,
# 24 and 12 MiB) these are three, which saves 0.9 GB of 2.6; at 224x224 it is none, where
# recomputation in all stages would take 9 to 22 % of a step's time.
TRAINING_BYTES = 20 * 2**20


class MlpParameters(NamedTuple):
    """Of LayerNorm, ``(C)``, and of linear layers from C to hidden channels and back."""

    norm_weight: Tensor
    norm_bias: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor


def pays(x: Tensor, parameters: MlpParameters) -> bool:
    """Whether :func:`norm_mlp` can run here, and is worth its recomputation if it trains.

    The first dimension of x counts images.
    """
    if memory.unsupported_reasons([x, *parameters]) or x.numel() == 0:
        return False
    if not memory.records_gradients([x, *parameters]):
        return True
    hidden = x.shape[1:-1].numel() * len(parameters.weight1) * x.element_size()
    return hidden >= TRAINING_BYTES


def _hidden(eps: float, x: Tensor, p: MlpParameters) -> Tensor:
    """``(..., C)`` -> ``(..., hidden)``."""
    x = F.layer_norm(x, x.shape[-1:], p.norm_weight, p.norm_bias, eps)
    return F.gelu(linear(x, p.weight1, p.bias1))


def mlp(eps: float, x: Tensor, *parameters: Tensor) -> Tensor:
    """What :func:`norm_mlp` computes, all at once; x is ``(..., C)``."""
    p = MlpParameters(*parameters)
    return linear(_hidden(eps, x, p), p.weight2, p.bias2)


def token_chunks(x: Tensor, width: int) -> list[slice]:
    """Chunks of ``(M, C)`` for which a layer of this width takes up to ``CHUNK_BYTES``."""
    return memory.spans(len(x), CHUNK_BYTES // (width * x.element_size()))


def _current_autocast() -> torch.autocast:
    """What is in force, without its cache.

    Weights cast here belong to no graph, or to that of one chunk; others must not be handed them.
    """
    dtype, enabled = compat.autocast_dtype('cpu'), compat.is_autocast_enabled('cpu')
    return torch.autocast('cpu', dtype, enabled, cache_enabled=False)


def _gradients(
    out: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool], d_out: Tensor, **kwargs: Any
) -> list[Tensor | None]:
    """Gradients of the inputs that need one; None for the others."""
    leaves = [value for value, need in zip(inputs, needed) if need]
    grads = iter(torch.autograd.grad(out, leaves, d_out, **kwargs))
    return [next(grads) if need else None for need in needed]


def _chunk_gradients(
    ctx: Any, x: Tensor, parameters: Sequence[Tensor], d_out: Tensor
) -> list[Tensor | None]:
    """Gradients of a chunk and of the parameters; None for what needs none.

    Only the hidden layer is computed again: the output is not needed, so the second linear layer
    is differentiated by hand.
    """
    needed = ctx.needs_input_grad[1:]
    inputs = [x, *parameters]
    for leaf, need in zip(inputs, needed):
        leaf.requires_grad_(need)
    p = MlpParameters(*parameters)
    with ctx.autocast:
        with torch.enable_grad():
            hidden = _hidden(ctx.eps, x, p)
        d_weight2 = d_out.mT @ hidden if needed[-2] else None
        d_bias2 = d_out.sum(0) if needed[-1] else None
        d_hidden = linear(d_out, p.weight2.mT) if hidden.requires_grad else None
    before: list[Tensor | None] = [None] * len(inputs[:-2])
    if d_hidden is not None:
        before = _gradients(hidden, inputs[:-2], needed[:-2], d_hidden)
    return [*before, d_weight2, d_bias2]


class _ChunkedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, eps: float, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        ctx.eps, ctx.autocast = eps, _current_autocast()
        with ctx.autocast:
            out = mlp(eps, x[:0], *parameters).new_empty(x.shape)
            for chunk in token_chunks(x, len(parameters[2])):
                out[chunk] = mlp(eps, x[chunk], *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # create_graph=True: the whole map at once
            with ctx.autocast:
                out = mlp(ctx.eps, *inputs)
            return None, *_gradients(out, inputs, needed, d_out, create_graph=True)

        x, *parameters = (value.detach() for value in inputs)
        d_x = torch.empty_like(x) if needed[0] else None
        # In half precision the sum of many chunks would be rounded as many times.
        totals = [
            torch.zeros_like(value, dtype=compute_dtype(value.dtype)) if need else None
            for value, need in zip(parameters, needed[1:])
        ]
        for chunk in token_chunks(x, len(parameters[2])):
            d_chunk, *grads = _chunk_gradients(ctx, x[chunk], parameters, d_out[chunk])
            if d_x is not None and d_chunk is not None:
                d_x[chunk] = d_chunk
            for total, grad in zip(totals, grads):
                if total is not None and grad is not None:
                    total += grad
        d_parameters = (
            None if total is None else total.to(value.dtype)
            for total, value in zip(totals, parameters)
        )
        return None, d_x, *d_parameters


def norm_mlp(x: Tensor, parameters: MlpParameters, eps: float) -> Tensor:
    """Two linear layers, GELU between them, of LayerNorm.

    Args:
        x: ``(..., C)``.
        parameters: See :class:`MlpParameters`.
        eps: What LayerNorm adds to the variance.

    Returns:
        ``(..., C)``, of the dtype that ``torch.nn.functional.linear`` gives.
    """
    return _ChunkedMlp.apply(eps, x.flatten(0, -2), *parameters).view(x.shape)
