# SPDX-License-Identifier: Apache-2.0
"""Public function of focal attention: validates inputs, selects a backend and calls it."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmfocal import compat, settings

from .bias import FocalBias, combined_bias, map_tables
from .geometry import FocalGeometry, compute_dtype
from .impl import chunked, reference, sdpa, triton
from .inputs import FocalInputs, check_inputs

# Called with the choice of 'auto'; `mmfocal.models` redirects it to MMEngine's log.
announce: Callable[[str], None] = logging.getLogger('mmfocal').info


def _never(inputs: FocalInputs) -> list[str]:
    return []


class Backend(NamedTuple):
    """A backend.

    Attributes:
        forward: Computes attention from the inputs and the result of ``combine``, of any type.
        unsupported_reasons: Returns why inputs are unsupported; an empty list if they are not.
        combine: Combines the bias tables in the layout that ``forward`` expects.
    """

    forward: Callable[[FocalInputs, Any], Tensor]
    unsupported_reasons: Callable[[FocalInputs], list[str]] = _never
    combine: Callable[[FocalBias, FocalGeometry], Tensor | None] = combined_bias


BACKENDS = {
    # The reference reads the tables of the inputs, one for each group of keys.
    'reference': Backend(reference.focal_attention, combine=lambda bias, geometry: None),
    'sdpa': Backend(sdpa.focal_attention),
    'chunked': Backend(chunked.focal_attention, chunked.unsupported_reasons),
    'triton': Backend(triton.focal_attention, triton.unsupported_reasons, triton.combined_columns),
}
IMPLS = ('auto', *BACKENDS)


def auto_order(device_type: str) -> tuple[str, ...]:
    """Return the backends that ``'auto'`` tries, fastest first; the last one always runs."""
    preferred = {'cuda': 'triton', 'cpu': 'chunked'}.get(device_type)
    return ('sdpa',) if preferred is None else (preferred, 'sdpa')


def check_impl(impl: str, name: str = 'attn_impl') -> None:
    """Raise a ValueError that names the argument unless ``impl`` is ``'auto'`` or a backend."""
    if impl not in IMPLS:
        raise ValueError(f'{name} must be one of {", ".join(IMPLS)}, got {impl!r}')


_logged: set[tuple[str, str]] = set()


# Runs while code is compiled. The decorator has no types.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def log_choice(name: str, device_type: str, reasons: Sequence[str] = ()) -> None:
    """Log which backend ``'auto'`` selected and why the preferred one is unsupported.

    The choice is logged once per backend and type of device, with the reasons of the first call,
    because reasons may contain sizes, which vary.
    """
    if (name, device_type) in _logged:
        return
    _logged.add((name, device_type))
    because = f' ({auto_order(device_type)[0]!r}: {"; ".join(reasons)})' if reasons else ''
    announce(f'focal attention on {device_type} uses {name!r}{because}')


def resolve_impl(impl: str) -> str:
    """Check ``impl`` and replace ``'auto'`` by the environment variable if it is set."""
    check_impl(impl)
    return settings.choice(settings.ATTN_IMPL, IMPLS) if impl == 'auto' else impl


def _choose(impl: str, inputs: FocalInputs) -> Backend:
    """Select a backend. An unsupported explicit choice is an error; only ``'auto'`` falls back."""
    impl = resolve_impl(impl)
    if impl != 'auto':
        reasons = BACKENDS[impl].unsupported_reasons(inputs)
        if reasons:
            raise ValueError(f'attn_impl={impl!r} cannot run here: {"; ".join(reasons)}')
        return BACKENDS[impl]
    device_type, reasons = inputs.qkv.device.type, []
    for name in auto_order(device_type):
        unsupported = BACKENDS[name].unsupported_reasons(inputs)
        if not unsupported:
            break
        reasons += unsupported
    if device_type != 'meta':
        log_choice(name, device_type, reasons)
    return BACKENDS[name]


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Disable autocast, which casts bias and softmax; backends handle precision themselves."""
    if not compat.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def focal_attention(inputs: FocalInputs, impl: str = 'auto') -> Tensor:
    """Apply focal self-attention to every window of a token map (paper, section 3.2).

    Args:
        inputs: See :class:`FocalInputs`.
        impl: ``'auto'`` or the name of a backend. ``'auto'`` uses the environment variable
            ``MMFOCAL_ATTN_IMPL`` if set, else the fastest supported backend.

    Returns:
        ``(B, H, W, C)`` in the dtype of ``qkv``, heads merged. The bias is combined, and softmax
        computed, in float32 at least. ``'sdpa'`` centers the bias, then rounds it to the dtype of
        ``qkv``.

    Raises:
        ValueError: If shapes contradict the geometry, or an explicit backend is unsupported.
    """
    check_inputs(inputs)
    backend = _choose(impl, inputs)
    dtype = compute_dtype(inputs.qkv.dtype)
    with _without_autocast(inputs.qkv.device.type):
        bias = map_tables(lambda table: table.to(dtype), inputs.bias)
        qkv, map_size, _, geometry, scale, shift, dropout_p = inputs
        # not `_replace`, which the Dynamo of PyTorch 2.6 cannot trace
        inputs = FocalInputs(qkv, map_size, bias, geometry, scale, shift, dropout_p)
        return backend.forward(inputs, backend.combine(bias, geometry))
