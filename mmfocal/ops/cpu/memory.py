# SPDX-License-Identifier: Apache-2.0
"""Scratch memory, chunks, and when operators for CPUs cannot run.

On a CPU fresh memory is expensive: the C library returns large blocks to the system, and each page
that is touched for the first time costs about as much as computing what is written to it. So these
operators work on chunks that fit a cache, in memory that they keep.
"""

import math
import threading
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mmfocal import compat


class _Memory(threading.local):
    """Scratch memory of one thread, by name, device and dtype."""

    def __init__(self) -> None:
        self.blocks: dict[tuple, Tensor] = {}


_memory = _Memory()


def scratch(name: str, shape: Sequence[int], like: Tensor) -> Tensor:
    """Uninitialized memory that outlives the call.

    Args:
        name: Whoever takes the same name next, in the same thread, gets the same memory.
        shape: Shape of the tensor.
        like: Its device and dtype.

    Returns:
        A contiguous tensor without gradient.
    """
    key, blocks = (name, like.device, like.dtype), _memory.blocks
    size = math.prod(shape)
    with torch.inference_mode(False):  # training cannot use an inference tensor
        if key not in blocks or blocks[key].numel() < size:
            blocks.pop(key, None)  # not to hold both at once
            blocks[key] = torch.empty(size, dtype=like.dtype, device=like.device)
        return blocks[key][:size].view(*shape)


def spans(total: int, limit: int) -> list[slice]:
    """Cut ``range(total)`` into the fewest slices of at most ``limit`` (or 1), equally long."""
    count = math.ceil(total / max(1, limit))
    return [slice(i * total // count, (i + 1) * total // count) for i in range(count)]


def unsupported_reasons(tensors: Iterable[Tensor]) -> list[str]:
    """Reasons why an operator for CPUs cannot take these tensors."""
    if compat.is_recorded():
        return ['compiling, exporting and tracing are not supported']
    tensors = list(tensors)
    devices = {x.device.type for x in tensors} - {'cpu'}
    subclasses = {type(x).__name__ for x in tensors if not compat.is_plain_tensor(x)}
    reasons = {
        f'device {", ".join(sorted(devices))} is not supported, only cpu': devices,
        f'tensor subclasses ({", ".join(sorted(subclasses))}) are not supported': subclasses,
        'torch.func and forward-mode differentiation are not supported': (
            compat.are_transforms_active()
        ),
        'dispatch modes, such as FLOP counters, are not supported': (
            compat.is_dispatch_mode_active()
        ),
    }
    return [reason for reason, applies in reasons.items() if applies]


def records_gradients(tensors: Iterable[Tensor]) -> bool:
    """Whether autograd will follow what is computed from these tensors."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
