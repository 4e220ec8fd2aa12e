# SPDX-License-Identifier: Apache-2.0
"""Inputs of focal attention, calls by backend, and the tolerance of a backend."""

import math

import torch
from torch import Tensor

from mmfocal.ops.focal_attention import (
    IMPLS,
    FocalBias,
    FocalGeometry,
    FocalInputs,
    focal_attention,
)

# Backends for CPUs; tests.helpers.triton has the one for GPUs.
CPU_IMPLS = [impl for impl in IMPLS if impl not in ('auto', 'triton')]
FAST_IMPLS = [impl for impl in CPU_IMPLS if impl != 'reference']

# Window, expand, focal window, level; windows down and across; shift
CASES = {
    'detection': (FocalGeometry(7, 3, 15, 2), (3, 5), 0),
    'one window': (FocalGeometry(7, 3, 7, 2), (1, 1), 0),
    'window only': (FocalGeometry(7), (2, 3), 0),
    'local only': (FocalGeometry(7, 3), (2, 1), 0),
    'global only': (FocalGeometry(7, 0, 5, 2), (2, 3), 0),
    'shift': (FocalGeometry(7, 3, 7, 2), (2, 3), 3),
    'shift, window only': (FocalGeometry(4), (3, 2), 2),
    'expand over half a window': (FocalGeometry(5, 4, 3, 2), (2, 3), 0),
    'expand a whole window': (FocalGeometry(4, 4, 3, 2), (1, 3), 0),
    'three levels, even window': (FocalGeometry(6, 2, 3, 3), (3, 2), 0),
    'four levels': (FocalGeometry(7, 1, 5, 4), (2, 2), 3),
    'single token windows': (FocalGeometry(1, 1, 3, 2), (3, 4), 0),
}


def make_inputs(
    geometry: FocalGeometry, windows: tuple[int, int], heads: int = 2, dim: int = 5
) -> dict[str, Tensor]:
    """Random fp64 leaves by name; head dim 5 and 2 heads expose wrong layouts."""
    w, (nh, nw) = geometry.window_size, windows
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        'qkv': randn(2, nh * w, nw * w, 3 * heads * dim),
        'window': randn((2 * w - 1) ** 2, heads),
    }
    if geometry.expand_size:
        inputs['neighbors'] = randn(1, heads, w * w, geometry.num_neighbors)
    for level in geometry.coarse_levels:
        inputs[f'coarse_kv.{level}'] = randn(2, nh * 2**level, nw * 2**level, 2 * heads * dim)
        side = w + geometry.regions[1 + level].side - 1
        inputs[f'coarse.{level}'] = randn(heads, side**2)
    return inputs


def to_tokens(inputs: dict[str, Tensor], geometry: FocalGeometry) -> Tensor:
    """Queries, keys and values of all maps; coarse queries, which are not used, are NaN."""
    maps = [inputs['qkv']]
    for level in geometry.coarse_levels:
        kv = inputs[f'coarse_kv.{level}']
        maps.append(torch.nn.functional.pad(kv, (kv.shape[-1] // 2, 0), value=math.nan))
    return torch.cat([x.flatten(1, 2) for x in maps], dim=1)


def to_bias(inputs: dict[str, Tensor], geometry: FocalGeometry) -> FocalBias:
    coarse = tuple(inputs[f'coarse.{level}'] for level in geometry.coarse_levels)
    return FocalBias(inputs['window'], inputs.get('neighbors'), coarse)


def call(inputs: dict[str, Tensor], geometry: FocalGeometry, impl: str, **kwargs) -> Tensor:
    tokens, map_size = to_tokens(inputs, geometry), tuple(inputs['qkv'].shape[1:3])
    bias, kwargs = to_bias(inputs, geometry), {'scale': 0.4, **kwargs}
    return focal_attention(FocalInputs(tokens, map_size, bias, geometry, **kwargs), impl)


def run(
    inputs: dict[str, Tensor],
    geometry: FocalGeometry,
    impl: str,
    dtype: torch.dtype,
    device: str = 'cpu',
    **kwargs,
) -> dict[str, Tensor]:
    """Output and the gradient of every input, by name."""
    leaves = {k: v.to(device, dtype, copy=True).requires_grad_() for k, v in inputs.items()}
    out = call(leaves, geometry, impl, **kwargs)
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out.backward(seed.to(out))
    return {'out': out.detach(), **{f'd_{k}': v.grad for k, v in leaves.items()}}


def check_rounds_as_well_as_reference(case: str, impl: str, device: str = 'cpu') -> None:
    """In fp32, a backend's error may be twice the reference's error plus four roundings."""
    geometry, windows, shift = CASES[case]
    inputs = make_inputs(geometry, windows)
    truth = run(inputs, geometry, 'reference', torch.float64, device, shift=shift)
    plain = run(inputs, geometry, 'reference', torch.float32, device, shift=shift)
    ours = run(inputs, geometry, impl, torch.float32, device, shift=shift)
    for name, value in truth.items():
        rounding = torch.finfo(torch.float32).eps * value.abs().max()
        bound = 2 * (plain[name] - value).abs().max() + 4 * rounding
        error = (ours[name] - value).abs().max()
        assert error <= bound, f'{name}: error {error:.1e}, bound {bound:.1e}'


def with_large_logits(inputs: dict[str, Tensor], factor: float = 8.0) -> dict[str, Tensor]:
    """Queries and keys times a factor: logits of some hundreds, whose exponentials exceed fp16."""
    channels = inputs['qkv'].shape[-1] // 3
    enlarged = {}
    for name, value in inputs.items():
        large = {'qkv': 2 * channels}.get(name, channels if 'kv' in name else 0)
        enlarged[name] = torch.cat([factor * value[..., :large], value[..., large:]], dim=-1)
    dim = channels // inputs['window'].shape[1]
    tokens = enlarged['qkv'][0].flatten(0, 1)
    logits = 0.4 * tokens[:, :dim] @ tokens[:, channels : channels + dim].T
    assert logits.max() > 200 and logits.min() < -200
    return enlarged


def check_half_precision(
    inputs: dict[str, Tensor],
    geometry: FocalGeometry,
    impl: str,
    dtype: torch.dtype,
    device: str = 'cpu',
    shift: int = 0,
    roundings: float = 4,
) -> None:
    """Compare output and every gradient with the reference in float64.

    Maps are in half precision, tables in float32, as under autocast.

    Args:
        inputs: See ``make_inputs``.
        geometry: The key set of a window.
        impl: Backend.
        dtype: Of the maps.
        device: Of all inputs.
        shift: By how many tokens the map is rolled.
        roundings: How often values are rounded to half precision, in units of its ``eps``.
    """
    leaves = {
        name: value.to(device, dtype if 'kv' in name else torch.float32).requires_grad_()
        for name, value in inputs.items()
    }
    exact = {name: value.detach().double().requires_grad_() for name, value in leaves.items()}
    out = call(leaves, geometry, impl, shift=shift)
    truth = call(exact, geometry, 'reference', shift=shift)
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    out.backward(seed)
    truth.backward(seed.double())
    assert out.dtype == dtype
    # Logits are sums of d products in float32. Their error is the relative one of numerators and
    # denominators of the weights, and once more of the gradients of logits.
    channels = inputs['qkv'].shape[-1] // 3
    dim = channels // inputs['window'].shape[1]
    q, k, _ = (part.unflatten(-1, (-1, dim)) for part in inputs['qkv'].split(channels, dim=-1))
    largest = 0.4 * (q.norm(dim=-1).max() * k.norm(dim=-1).max()).item()
    logit_error = largest * (dim + 2) * torch.finfo(torch.float32).eps / 2
    bound = roundings * torch.finfo(dtype).eps + 4 * logit_error
    # Gradients of logits are differences between products of this size, one with the output.
    product = (seed.double() * truth.detach()).unflatten(-1, (-1, dim)).sum(-1).abs().max()
    pairs = {'out': (out, truth), **{f'd_{k}': (leaves[k].grad, exact[k].grad) for k in leaves}}
    for name, (value, expected) in pairs.items():
        size = expected.abs().max()
        error = (value - expected).abs().max() / (size if name == 'out' else max(size, product))
        assert error <= bound, f'{name}: error {error:.1e}, bound {bound:.1e}'
