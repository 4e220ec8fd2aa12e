# SPDX-License-Identifier: Apache-2.0
"""Scratch memory, chunks, and unsupported inputs of the CPU operators.

Fresh memory is expensive on a CPU: the C library returns large blocks to the system, and the first
access to a page costs about as much as computing its content. These operators therefore work on
chunks that fit the cache, in memory that is reused.
"""

import math
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmfocal import compat


class _Memory(threading.local):
    """Scratch memory of a thread, by name, device and dtype."""

    def __init__(self) -> None:
        self.blocks: dict[tuple[Any, ...], Tensor] = {}


_memory = _Memory()


def scratch(name: str, shape: Sequence[int], like: Tensor) -> Tensor:
    """Return uninitialized memory that is reused in later calls.

    Args:
        name: Name of the memory. The next call with this name in this thread gets the same memory.
        shape: Shape of the tensor.
        like: Tensor of the wanted device and dtype.

    Returns:
        A contiguous tensor without gradient.
    """
    key, blocks = (name, like.device, like.dtype), _memory.blocks
    size = math.prod(shape)
    with torch.inference_mode(False):  # autograd cannot save an inference tensor
        if key not in blocks or blocks[key].numel() < size:
            blocks.pop(key, None)  # frees the old memory first
            blocks[key] = torch.empty(size, dtype=like.dtype, device=like.device)
        return blocks[key][:size].view(*shape)


def spans(total: int, limit: int) -> list[slice]:
    """Split ``range(total)`` evenly into the fewest slices of at most ``limit`` (at least 1)."""
    count = math.ceil(total / max(1, limit))
    return [slice(i * total // count, (i + 1) * total // count) for i in range(count)]


def unsupported_reasons(tensors: Iterable[Tensor]) -> list[str]:
    """Return the reasons why the CPU operators do not support these tensors."""
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
    """Return whether autograd records computations with these tensors."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
