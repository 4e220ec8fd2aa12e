# SPDX-License-Identifier: Apache-2.0
"""Record launches of kernels instead of starting them."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmfocal.ops.focal_attention.impl.triton import attention, bias, tokens
from mmfocal.ops.focal_attention.impl.triton.operators import Operator

MODULES = (attention, bias, tokens)
LAUNCHERS = {
    value.operator: value.launcher
    for module in MODULES
    for value in vars(module).values()
    if isinstance(value, Operator)
}
# Operators of PyTorch that start nothing, besides views.
FREE = ('empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided', '_unsafe_view')
FREE += ('is_same_size', 'lift_fresh')


def starts_nothing(operator: torch._ops.OpOverload) -> bool:
    results = [result.alias_info for result in operator._schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in results)
    return is_view or operator.namespace == 'prim' or operator.overloadpacket.__name__ in FREE


class _Recorder(TorchDispatchMode):
    """Records fills and copies."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if not starts_nothing(operator):
            self.names.append(str(operator))
        return operator(*args, **(kwargs or {}))


def launches(operator: Any, *args: Any) -> list[str]:
    """List the kernels, fills and copies that an operator of the package starts.

    Values of tensors are not read, so fake tensors and meta tensors are supported.
    """
    names: list[str] = []

    def record(kernel: Any, *_: Any, **constants: Any) -> None:
        names.append(kernel.__name__)

    with pytest.MonkeyPatch.context() as patch, _Recorder(names):
        for module in MODULES:
            patch.setattr(module, 'start', record)
        LAUNCHERS[operator](*args)
    return names
