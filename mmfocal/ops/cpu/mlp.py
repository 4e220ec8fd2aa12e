# SPDX-License-Identifier: Apache-2.0
"""LayerNorm and MLP for CPUs in chunks of tokens, without storing the whole hidden layer.

The hidden layer is the largest tensor of a block, four times the map, and autograd would save two
of its size. Here autograd saves the input only; the backward pass recomputes and differentiates
the chunks one at a time.
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

# Bytes of hidden values per chunk: small enough for a level 3 cache, with enough tokens for full
# speed of the matrix products at all widths of the paper.
CHUNK_BYTES = 8 * 2**20
# Minimum bytes of one image's hidden layer for recomputation in training. Only large images reach
# it; for these, a smaller batch does not save enough memory. At 784x1344, three of Focal-T's four
# stages (96, 48, 24 and 12 MiB) are recomputed, which saves 0.9 GB of 2.6 GB. At 224x224, no stage
# is recomputed; recomputation in all stages would take 9 to 22 % of a step's time.
TRAINING_BYTES = 20 * 2**20


class MlpParameters(NamedTuple):
    """Parameters of a LayerNorm, ``(C)``, and of two linear layers, C to hidden to C."""

    norm_weight: Tensor
    norm_bias: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor


def is_worthwhile(x: Tensor, parameters: MlpParameters) -> bool:
    """Return whether :func:`norm_mlp` is supported and, in training, worth its recomputation.

    The first dimension of ``x`` is the batch.
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
    """Compute the same as :func:`norm_mlp` without chunks; ``x`` is ``(..., C)``."""
    p = MlpParameters(*parameters)
    return linear(_hidden(eps, x, p), p.weight2, p.bias2)


def token_chunks(x: Tensor, width: int) -> list[slice]:
    """Return chunks of ``(M, C)`` whose hidden layer takes at most ``CHUNK_BYTES``."""
    return memory.spans(len(x), CHUNK_BYTES // (width * x.element_size()))


def _current_autocast() -> torch.autocast:
    """Return a copy of the current autocast context without weight cache.

    Weights that are cast in a chunk belong to no graph or to the chunk's own, so other code must
    not get them from the cache.
    """
    dtype, enabled = compat.autocast_dtype('cpu'), compat.is_autocast_enabled('cpu')
    return torch.autocast('cpu', dtype, enabled, cache_enabled=False)


def _gradients(
    out: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool], d_out: Tensor, **kwargs: Any
) -> list[Tensor | None]:
    """Return the gradients of the inputs that require one; None for the others."""
    leaves = [value for value, need in zip(inputs, needed) if need]
    grads = iter(torch.autograd.grad(out, leaves, d_out, **kwargs))
    return [next(grads) if need else None for need in needed]


def _chunk_gradients(
    ctx: Any, x: Tensor, parameters: Sequence[Tensor], d_out: Tensor
) -> list[Tensor | None]:
    """Return the gradients of a chunk and of the parameters; None where none is required.

    Only the hidden layer is recomputed. The output is not needed, so the second linear layer is
    differentiated by hand.
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
        if torch.is_grad_enabled():  # create_graph=True: without chunks
            with ctx.autocast:
                out = mlp(ctx.eps, *inputs)
            return None, *_gradients(out, inputs, needed, d_out, create_graph=True)

        x, *parameters = (value.detach() for value in inputs)
        d_x = torch.empty_like(x) if needed[0] else None
        # In half precision the sum over chunks would be rounded for each chunk.
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
    """Apply LayerNorm and an MLP: two linear layers with GELU between them.

    Args:
        x: ``(..., C)``.
        parameters: See :class:`MlpParameters`.
        eps: Epsilon of the LayerNorm.

    Returns:
        ``(..., C)`` in the dtype that ``torch.nn.functional.linear`` returns.
    """
    return _ChunkedMlp.apply(eps, x.flatten(0, -2), *parameters).view(x.shape)
