# SPDX-License-Identifier: Apache-2.0
"""Tokens of a map and its pooled maps against the layers that make them one by one."""

import pytest
import torch

from mmfocal.models.focal_transformer import FocalBlock
from mmfocal.models.layers import pad_to_multiple
from mmfocal.ops.cpu.tokens import pool_tokens
from mmfocal.ops.focal_attention import FocalGeometry

GEOMETRIES = {
    'two levels': FocalGeometry(7, 3, 3, 2),
    'three levels': FocalGeometry(7, 1, 3, 3),
    'fine only': FocalGeometry(4),
}


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('shift', [0, 2])
@pytest.mark.parametrize('size', [(2, 14, 21), (1, 15, 33), (3, 1, 1), (0, 8, 8)])
@pytest.mark.parametrize('name', GEOMETRIES)
def test_equals_the_layers(
    name: str, size: tuple[int, int, int], shift: int, dtype: torch.dtype
) -> None:
    block = FocalBlock(6, 2, GEOMETRIES[name]).to(dtype)
    x = torch.randn(*size, 6, dtype=dtype, requires_grad=True)
    padded = pad_to_multiple(x, block.geometry.window_size).roll((-shift, -shift), (1, 2))
    expected = block._pool(padded)
    weights, biases = (
        [getattr(p, name) for p in block.pool_layers] for name in ('weight', 'bias')
    )
    ours = pool_tokens(x, weights, biases, block.geometry, shift)
    seed = torch.randn_like(expected)
    leaves = [x, *weights, *biases]
    # Worst-case rounding of a sum of n terms is n eps; the longest are over all positions.
    terms = max(1, expected.numel())
    for a, b in zip(
        [ours, *torch.autograd.grad(ours, leaves, seed)],
        [expected, *torch.autograd.grad(expected, leaves, seed)],
        strict=True,
    ):
        bound = terms * torch.finfo(dtype).eps * b.abs().max() if b.numel() else 0
        assert a.shape == b.shape and ((a - b).abs() <= bound).all()


def test_keeps_the_tokens_only() -> None:
    block, x = (
        FocalBlock(6, 2, GEOMETRIES['two levels']),
        torch.randn(1, 15, 33, 6).requires_grad_(),
    )
    (pool,), saved = block.pool_layers, []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        tokens = pool_tokens(x, [pool.weight], [pool.bias], block.geometry, 0)
    assert {t.data_ptr() for t in saved} == {tokens.data_ptr(), pool.weight.data_ptr()}
