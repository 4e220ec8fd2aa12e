# SPDX-License-Identifier: Apache-2.0
"""How kernels start, and how launchers become operators of PyTorch.

A *launcher* takes tensors and numbers, makes its outputs and starts kernels. Eager code calls it
as it is. What is compiled, watched by a dispatch mode or run on fake tensors calls the operator of
that name: the launcher with a schema and a description of its outputs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from mmfocal import compat

_LIBRARY = torch.library.Library('mmfocal', 'FRAGMENT')
ALLOCATIONS = ('empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided')
_VIEWS_WITHOUT_ALIAS = ('_unsafe_view', 'lift_fresh', 'sym_size', 'sym_stride', 'sym_numel')
_noted: list[list[str]] = []


def ceil_div(a: int, b: int) -> int:
    return (a + b - 1) // b  # simplifies where a size is a symbol


def start(kernel: Any, grid: tuple[int, ...], like: Tensor, *args: Any, **constants: Any) -> None:
    """Start a kernel on the device of ``like``; inside :func:`noting`, note its name instead."""
    if _noted:
        _noted[-1].append(kernel.__name__)
        return
    is_elsewhere = like.is_cuda and like.device.index != torch.cuda.current_device()
    with torch.cuda.device(like.device) if is_elsewhere else nullcontext():
        kernel[grid](*args, **constants)


def starts_kernel(function: torch._ops.OpOverload) -> bool:
    """Whether an operator of PyTorch starts a kernel on a GPU: no view, no allocation."""
    name = function._schema.name.partition('::')[2]
    if function.namespace == 'prim' or name in (*ALLOCATIONS, *_VIEWS_WITHOUT_ALIAS):
        return False
    aliases = [value.alias_info for value in function._schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in aliases)
    return not is_view and name != 'is_same_size'


class _Noting(TorchDispatchMode):
    """Notes operators of PyTorch that start kernels."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if starts_kernel(function):
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@contextmanager
def noting() -> Iterator[list[str]]:
    """List what would start kernels: ours, which then do not start, and operators of PyTorch."""
    names: list[str] = []
    _noted.append(names)
    try:
        with _Noting(names):
            yield names
    finally:
        _noted.pop()


class Operator:
    """A launcher that is an operator of PyTorch too.

    Args:
        schema: Name, arguments and results, as ``torch.library`` writes them.
        launcher: Called with what the schema says.
        outputs: Same arguments; makes uninitialized results.
    """

    def __init__(self, schema: str, launcher: Callable, outputs: Callable) -> None:
        name = schema.partition('(')[0]
        _LIBRARY.define(schema)
        _LIBRARY.impl(name, launcher, 'CompositeExplicitAutograd')
        library = torch.library  # the second name is that of torch 2.3 and before
        register_fake = getattr(library, 'register_fake', None) or library.impl_abstract
        register_fake(f'mmfocal::{name}', outputs, lib=_LIBRARY)
        self.launcher = launcher
        self.operator = getattr(torch.ops.mmfocal, name).default

    def __call__(self, *args: Any) -> Any:
        return (self.launcher if compat.is_plain_eager() else self.operator)(*args)

    def launches(self, *args: Any) -> list[str]:
        """What a call starts: every kernel, fill and copy. Tensors of any device, even fake."""
        from torch.utils._python_dispatch import _disable_current_modes

        def on_meta(x: Tensor) -> Tensor:
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device='meta')

        with _disable_current_modes():
            args = tree_map_only(Tensor, on_meta, args)
            for _ in range(2):  # the first call makes what is kept
                with noting() as names:
                    self.launcher(*args)
        return names
