# SPDX-License-Identifier: Apache-2.0
"""The one public function of focal attention: validate, choose a back end, call it."""

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .geometry import FocalBias, FocalGeometry, compute_dtype
from .impl import chunked, reference, sdpa, triton

logger = logging.getLogger('mmfocal')

ENV_IMPL = 'MMFOCAL_ATTN_IMPL'


class Backend(NamedTuple):
    """A back end: what computes, and why it would refuse a call (an empty list: it would not)."""

    forward: Callable[..., Tensor]
    refusals: Callable[..., list[str]]


def _never(*args) -> list[str]:
    return []


BACKENDS = {
    'reference': Backend(reference.focal_attention, _never),
    'sdpa': Backend(sdpa.focal_attention, _never),
    'chunked': Backend(chunked.focal_attention, chunked.refusals),
    'triton': Backend(triton.focal_attention, triton.refusals),
}
# What 'auto' tries, fastest first; the last one never refuses. 'triton' is to be the first of them
# once it has run on a GPU.
AUTO_ORDER = ('chunked', 'sdpa')
IMPLS = ('auto', *BACKENDS)


def check_impl(impl: str, name: str = 'attn_impl') -> None:
    """Raise ValueError, naming the argument, unless ``impl`` is ``'auto'`` or a back end."""
    if impl not in IMPLS:
        raise ValueError(f'{name} must be one of {", ".join(IMPLS)}, got {impl!r}')


@cache
def log_choice(name: str, device_type: str) -> None:
    """Say once which back end runs where nothing else was asked for."""
    logger.info('focal attention on %s: using %r', device_type, name)


def resolve_impl(impl: str) -> str:
    """A checked choice: ``'auto'`` is what the environment variable says, if anything."""
    if impl == 'auto' and os.environ.get(ENV_IMPL):
        impl = os.environ[ENV_IMPL]
        check_impl(impl, f'environment variable {ENV_IMPL}')
    check_impl(impl)
    return impl


def _choose(impl: str, *call) -> Callable[..., Tensor]:
    """An explicit choice that cannot run is an error; only ``'auto'`` falls back."""
    impl = resolve_impl(impl)
    if impl != 'auto':
        reasons = BACKENDS[impl].refusals(*call)
        if reasons:
            raise ValueError(f'attn_impl={impl!r} cannot run here: {"; ".join(reasons)}')
        return BACKENDS[impl].forward
    device_type = call[0].device.type
    name = next(name for name in AUTO_ORDER if not BACKENDS[name].refusals(*call))
    if not torch.compiler.is_compiling() and device_type != 'meta':
        log_choice(name, device_type)
    return BACKENDS[name].forward


def _check_shapes(
    qkv: Tensor, coarse_kv: tuple[Tensor, ...], bias: FocalBias, geometry: FocalGeometry
) -> None:
    """Compare every tensor with what the geometry implies; name the first that differs."""
    b, height, width, channels = qkv.shape
    w, num_heads = geometry.window_size, bias.own.shape[1]
    if height % w or width % w or not height * width:
        raise ValueError(
            f'qkv must be padded to multiples of the window {w}, got {height}x{width}'
        )
    if channels % (3 * num_heads):
        raise ValueError(f'qkv has {channels} channels, not a multiple of 3 x {num_heads} heads')
    expected = {'bias.own': (bias.own, ((2 * w - 1) ** 2, num_heads))}
    if (bias.neighbors is None) != (geometry.expand_size == 0):
        raise ValueError('bias.neighbors must be given exactly if expand_size > 0')
    if bias.neighbors is not None:
        shape = (1, num_heads, w * w, geometry.num_neighbors)
        expected['bias.neighbors'] = (bias.neighbors, shape)
    levels = geometry.focal_level - 1
    if not len(coarse_kv) == len(bias.coarse) == levels:
        raise ValueError(
            f'focal_level {levels + 1} needs {levels} coarse maps and tables, '
            f'got {len(coarse_kv)} and {len(bias.coarse)}'
        )
    for k, (level_kv, table) in enumerate(zip(coarse_kv, bias.coarse, strict=True)):
        grid = (b, 2**k * height // w, 2**k * width // w, channels // 3 * 2)
        expected[f'coarse_kv[{k}]'] = (level_kv, grid)
        expected[f'bias.coarse[{k}]'] = (
            table,
            (num_heads, (w + geometry.region_size(k) - 1) ** 2),
        )
    if bias.merged is not None:
        expected['bias.merged'] = (bias.merged, (num_heads, w * w, geometry.num_keys))
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f'{name} must have shape {shape}, got {tuple(tensor.shape)}')


def _without_autocast(device_type: str) -> AbstractContextManager:
    """Autocast would take bias and softmax to half precision; back ends decide on that."""
    if device_type == 'meta':  # knows no autocast
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def focal_attention(
    qkv: Tensor,
    coarse_kv: tuple[Tensor, ...],
    bias: FocalBias,
    geometry: FocalGeometry,
    *,
    scale: float,
    dropout_p: float = 0.0,
    impl: str = 'auto',
) -> Tensor:
    """Focal self-attention of every window of a token map (paper, section 3.2).

    Args:
        qkv: ``(B, H, W, 3C)``, queries, keys and values of the map; window multiples.
        coarse_kv: Per coarse level k the keys and values of its pooled tokens,
            ``(B, 2^k nH, 2^k nW, 2C)``.
        bias: Relative position bias tables, see :class:`FocalBias`.
        geometry: The key set, see :class:`FocalGeometry`.
        scale: Factor on the query-key products, usually ``d ** -0.5``.
        dropout_p: Dropout on the attention weights; pass 0 in evaluation.
        impl: ``'auto'`` or the name of a back end. ``'auto'`` takes the environment variable
            ``MMFOCAL_ATTN_IMPL`` if set, else the fastest back end that can run.

    Returns:
        ``(B, H, W, C)`` in the dtype of ``qkv``, heads merged. Logits, bias and softmax are
        computed in float32 at least.

    Raises:
        ValueError: If shapes contradict the geometry, or a back end named explicitly cannot run.
    """
    _check_shapes(qkv, coarse_kv, bias, geometry)
    bias = bias.to(compute_dtype(qkv.dtype))
    call = (qkv, tuple(coarse_kv), bias, geometry, scale, dropout_p)
    forward = _choose(impl, *call)
    with _without_autocast(qkv.device.type):
        return forward(*call)
