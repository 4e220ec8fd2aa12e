# SPDX-License-Identifier: Apache-2.0
"""Private and version-dependent names of PyTorch, in one place; imports torch only.

Each function says what it answers where the name is missing.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module


def has_global_hooks() -> bool:
    """Whether hooks of all modules are registered."""
    names = ('forward_pre_hooks', 'forward_hooks', 'backward_pre_hooks', 'backward_hooks')
    return any(getattr(_module, f'_global_{name}', None) for name in names)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module runs more than the ``forward`` of its class."""
    names = ('_forward_pre_hooks', '_forward_hooks', '_backward_pre_hooks', '_backward_hooks')
    state = vars(module)
    return 'forward' in state or any(state.get(name) for name in names)


def is_recorded() -> bool:
    """Whether a graph is made of what is computed, to run later."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def are_transforms_active() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is active."""
    from torch.autograd import forward_ad

    is_active = getattr(torch._C, '_are_functorch_transforms_active', lambda: False)
    return is_active() or getattr(forward_ad, '_current_level', -1) >= 0


def is_dispatch_mode_active() -> bool:
    """Whether a dispatch mode, such as a FLOP counter or fake tensors, watches operators."""
    from torch.utils import _python_dispatch

    mode = getattr(_python_dispatch, '_get_current_dispatch_mode', lambda: None)
    return mode() is not None


def without_dispatch_modes() -> AbstractContextManager:
    """A context in which operators run on real tensors, unwatched."""
    from torch.utils import _python_dispatch

    return getattr(_python_dispatch, '_disable_current_modes', nullcontext)()


def is_plain_eager() -> bool:
    """Whether operators run at once, unwatched and untransformed."""
    return not (is_recorded() or are_transforms_active() or is_dispatch_mode_active())


def is_plain_tensor(x: Tensor) -> bool:
    """Whether it is no subclass."""
    return type(x) in (Tensor, nn.Parameter)


def is_dense_tensor(x: Tensor) -> bool:
    """Whether it is a plain tensor, or a fake one that stands for such."""
    return is_plain_tensor(x) or type(x).__name__ == 'FakeTensor'


def is_autocast_enabled(device_type: str) -> bool:
    """``torch.is_autocast_enabled(device_type)``, which takes a device since torch 2.4."""
    if device_type == 'meta':
        return False
    try:
        return torch.is_autocast_enabled(device_type)
    except TypeError:
        is_cpu = device_type == 'cpu'
        return torch.is_autocast_cpu_enabled() if is_cpu else torch.is_autocast_enabled()


def autocast_dtype(device_type: str) -> torch.dtype:
    """``torch.get_autocast_dtype``, which exists since torch 2.4."""
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.get_autocast_dtype(device_type)
    is_cpu = device_type == 'cpu'
    return torch.get_autocast_cpu_dtype() if is_cpu else torch.get_autocast_gpu_dtype()
