# SPDX-License-Identifier: Apache-2.0
"""Kernel launches, and registration of launchers as PyTorch operators.

A *launcher* takes tensors and numbers, allocates its outputs and starts kernels. Eager code calls
it directly. Code that is compiled, runs under a dispatch mode or uses fake tensors calls the
operator of the same name: the launcher with a schema and a fake implementation. If PyTorch
supports it (``torch.library.triton_op``), compilers see the kernels of an operator and start them
themselves.

Operators accept no objects: ``sizes`` are the arguments of ``FocalGeometry``, see
:func:`sizes_of`.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mmfocal import compat, settings

from ...geometry import FocalGeometry

INTERPRETED = settings.is_on(settings.TRITON_INTERPRET)
# Available since torch 2.4; with older releases, launchers run in eager mode only.
ARE_REGISTERED = hasattr(torch.library, 'register_fake')
# Available since torch 2.6. The interpreter cannot run kernels that are wrapped for compilers.
ARE_KERNELS_VISIBLE = (
    hasattr(torch.library, 'triton_op') and compat.infers_schemas() and not INTERPRETED
)
# Limits of the kernels.
MAX_WINDOW_SIZE = 16
MAX_FOCAL_LEVEL = 4
MAX_EXTENT = 2**31  # of an image, in elements: offsets within it are 32-bit integers


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def sizes_of(geometry: FocalGeometry) -> list[int]:
    """Return window size, expand size, focal window and focal level."""
    g = geometry
    return [g.window_size, g.expand_size, g.focal_window, g.focal_level]


def _read_capability(device: torch.device) -> tuple[int, int]:
    if device.type != 'cuda' or not torch.cuda.is_available():
        return 0, 0
    gpu = torch.cuda.get_device_properties(device)  # get_device_capability does not compile
    return gpu.major, gpu.minor


_kept_capability = cache(_read_capability)  # does not compile either


def capability(device: torch.device) -> tuple[int, int]:
    """Return major and minor compute capability of a GPU; zeros without a GPU."""
    return (_read_capability if compat.is_compiling() else _kept_capability)(device)


def start(kernel: Any, grid: Any, like: Tensor, *args: Any, **constants: Any) -> None:
    """Start a kernel on the device of ``like``."""
    if not compat.is_plain_tensor(like):  # traces record the kernel
        torch.library.wrap_triton(kernel)[grid](*args, **constants)
        return
    is_elsewhere = like.is_cuda and like.device.index != torch.cuda.current_device()
    with torch.cuda.device(like.device) if is_elsewhere else nullcontext():
        kernel[grid](*args, **constants)


def _is_plain(arg: Any) -> bool:
    """Return whether the value contains no tensor of a subclass, such as a fake tensor."""
    if isinstance(arg, (list, tuple)):
        return all(_is_plain(part) for part in arg)
    return not isinstance(arg, Tensor) or compat.is_plain_tensor(arg)


class Operator:
    """A launcher that is also a PyTorch operator.

    Args:
        schema: Name, arguments and results, in the format of ``torch.library``.
        launcher: Function with the arguments of the schema and matching annotations.
        outputs: Function of the same arguments that returns uninitialized results.
        is_visible: Whether compilers may see the kernels; false if the launcher uses tensors that
            are not arguments.
    """

    def __init__(
        self,
        schema: str,
        launcher: Callable[..., Any],
        outputs: Callable[..., Any],
        is_visible: bool = True,
    ) -> None:
        self.launcher = launcher
        self.operator: Any = None
        name, arguments = schema.partition('(')[::2]
        if ARE_KERNELS_VISIBLE and is_visible:
            torch.library.triton_op(f'mmfocal::{name}', launcher, mutates_args=())
        elif ARE_REGISTERED:
            torch.library.define(f'mmfocal::{name}', '(' + arguments)
            torch.library.impl(f'mmfocal::{name}', 'CompositeExplicitAutograd', launcher)
            torch.library.register_fake(f'mmfocal::{name}', outputs)
        if ARE_REGISTERED:
            self.operator = getattr(torch.ops.mmfocal, name).default

    def __call__(self, *args: Any) -> Any:
        is_eager = compat.is_plain_eager() and all(map(_is_plain, args))
        return (self.launcher if is_eager else self.operator)(*args)
