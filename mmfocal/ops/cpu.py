# SPDX-License-Identifier: Apache-2.0
"""What operators written for CPUs share: scratch memory, chunks, and when they cannot run.

On a CPU fresh memory is dear: the C library returns large blocks to the system, and each page that
is touched for the first time costs about as much as computing what is written to it. So these
operators work on chunks that fit a cache, in memory that they keep.
"""

import math
import threading
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode


class _Memory(threading.local):
    """Scratch memory of one thread, by name, device and dtype."""

    def __init__(self) -> None:
        self.blocks: dict[tuple, Tensor] = {}


_memory = _Memory()


def scratch(name: str, shape: Sequence[int], like: Tensor) -> Tensor:
    """Uninitialised memory that outlives the call.

    Args:
        name: Whoever takes the same name next, in the same thread, gets the same memory.
        shape: Shape of the tensor.
        like: Its device and dtype.

    Returns:
        A contiguous tensor without gradient.
    """
    key, blocks = (name, like.device, like.dtype), _memory.blocks
    size = math.prod(shape)
    with torch.inference_mode(False):  # training could not use an inference tensor
        if key not in blocks or blocks[key].numel() < size:
            blocks.pop(key, None)  # not to hold both at once
            blocks[key] = torch.empty(size, dtype=like.dtype, device=like.device)
        return blocks[key][:size].view(*shape)


def spans(total: int, limit: int) -> list[slice]:
    """Cut ``range(total)`` into the fewest slices of at most ``limit`` (or 1), equally long."""
    count = math.ceil(total / max(1, limit))
    return [slice(i * total // count, (i + 1) * total // count) for i in range(count)]


def _is_recorded() -> bool:
    """Whether a graph is made of what is computed, to run later."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def eager_refusals(tensors: Iterable[Tensor]) -> list[str]:
    """Reasons why what keeps memory of its own cannot take these tensors.

    They must be plain ones, and what is done with them must happen at once.
    """
    if _is_recorded():
        return ['it cannot be compiled, exported or traced']
    strange = {type(x).__name__ for x in tensors} - {'Tensor', 'Parameter'}
    reasons = {
        f'it takes plain tensors only, not {", ".join(sorted(strange))}': strange,
        'it knows no function transforms (torch.func)': (
            torch._C._are_functorch_transforms_active()
        ),
        'it knows no forward-mode differentiation': forward_ad._current_level >= 0,
        'it hides its steps from dispatch modes, such as FLOP counters': (
            _get_current_dispatch_mode() is not None
        ),
    }
    return [reason for reason, applies in reasons.items() if applies]


def refusals(tensors: Iterable[Tensor]) -> list[str]:
    """Reasons why an operator for CPUs cannot take these tensors."""
    tensors = list(tensors)
    reasons = eager_refusals(tensors)
    devices = set() if _is_recorded() else {x.device.type for x in tensors} - {'cpu'}
    if devices:
        reasons.append(f'it runs on CPUs only, not on {", ".join(sorted(devices))}')
    return reasons


def records_gradients(tensors: Iterable[Tensor]) -> bool:
    """Whether autograd will follow what is computed from these tensors."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
