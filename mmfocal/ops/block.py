# SPDX-License-Identifier: Apache-2.0
"""A focal block as a function of its parameters, for the fast paths.

The standard forward pass calls the layers (:mod:`mmfocal.models.focal_transformer`).
:func:`run_block` computes the same from their parameters; devices replace steps by faster
operators. Inference on CPUs has its own function, :func:`mmfocal.ops.cpu.block.infer_block`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from .focal_attention import FocalBias, FocalGeometry, FocalInputs, focal_attention


class Affine(NamedTuple):
    """Weight and bias of LayerNorm, both ``(C)``, or a linear layer, ``(N, K)`` and ``(N)``."""

    weight: Tensor
    bias: Tensor


class Projection(NamedTuple):
    """Weight and optional bias of a linear layer, ``(N, K)`` and ``(N)``."""

    weight: Tensor
    bias: Tensor | None


class BlockParameters(NamedTuple):
    """Parameters of a block.

    Attributes:
        norm1: LayerNorm before the attention; its epsilon is ``eps1``.
        pool: Linear pooling per coarse level, ``(1, cell * cell)`` and ``(1)``.
        qkv: Linear layer of queries, keys and values.
        bias: Relative position bias tables.
        proj: Linear layer after the attention.
        norm2: LayerNorm before the MLP; its epsilon is ``eps2``.
        fc1: First linear layer of the MLP.
        fc2: Second linear layer of the MLP.
        gamma1: Scale ``(C)`` of the attention branch, or None.
        gamma2: Scale ``(C)`` of the MLP branch, or None.
        eps1: Epsilon of ``norm1``.
        eps2: Epsilon of ``norm2``.
        geometry: The key set of a window.
        scale: Factor on the query-key products.
        impl: Backend of the attention.
        drop_path: Stochastic depth, applied to a branch.
    """

    norm1: Affine
    pool: tuple[Affine, ...]
    qkv: Projection
    bias: FocalBias
    proj: Affine
    norm2: Affine
    fc1: Affine
    fc2: Affine
    gamma1: Tensor | None
    gamma2: Tensor | None
    eps1: float
    eps2: float
    geometry: FocalGeometry
    scale: float
    impl: str
    drop_path: Callable[[Tensor], Tensor]


def plain_norm_mlp(x: Tensor, p: BlockParameters, linear: Callable[..., Tensor]) -> Tensor:
    """Apply LayerNorm and MLP to ``(..., C)``."""
    x = F.layer_norm(x, x.shape[-1:], *p.norm2, p.eps2)
    return linear(F.gelu(linear(x, *p.fc1)), *p.fc2)


class Steps(NamedTuple):
    """Steps of a block that depend on the device.

    Attributes:
        pool_tokens: Normalized map, pooling parameters, geometry, shift -> tokens ``(B, T, C)``.
        linear: ``torch.nn.functional.linear`` or a faster equivalent.
        norm_mlp: Map, parameters, ``linear`` -> LayerNorm and MLP of the map.
    """

    pool_tokens: Callable[..., Tensor]
    linear: Callable[..., Tensor] = F.linear
    norm_mlp: Callable[..., Tensor] = plain_norm_mlp


def padded_size(x: Tensor, window_size: int) -> tuple[int, int]:
    """Return rows and columns of ``(B, H, W, C)``, padded to multiples of the window."""
    height, width = ((size + window_size - 1) // window_size for size in x.shape[1:3])
    return height * window_size, width * window_size


def add_branch(x: Tensor, branch: Tensor, gamma: Tensor | None, p: BlockParameters) -> Tensor:
    """Add a residual branch, scaled by ``gamma`` and with stochastic depth."""
    return x + p.drop_path(branch if gamma is None else gamma * branch)


def run_block(x: Tensor, p: BlockParameters, shift: int, steps: Steps) -> Tensor:
    """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
    _, height, width, dim = x.shape
    normed = F.layer_norm(x, (dim,), *p.norm1, p.eps1)
    weights, biases = [pool.weight for pool in p.pool], [pool.bias for pool in p.pool]
    tokens = steps.pool_tokens(normed, weights, biases, p.geometry, shift)
    inputs = FocalInputs(
        qkv=steps.linear(tokens, *p.qkv),
        map_size=padded_size(x, p.geometry.window_size),
        bias=p.bias,
        geometry=p.geometry,
        scale=p.scale,
        shift=shift,
    )
    attended = steps.linear(focal_attention(inputs, p.impl), *p.proj)
    if shift:
        attended = attended.roll((shift, shift), (1, 2))
    x = add_branch(x, attended[:, :height, :width], p.gamma1, p)
    return add_branch(x, steps.norm_mlp(x, p, steps.linear), p.gamma2, p)
