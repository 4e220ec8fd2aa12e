# SPDX-License-Identifier: Apache-2.0
"""Named tuples of kernels.

Launchers and compilers pass tensors and numbers only, so kernels take separate arguments. A kernel
bundles them and calls the function that does the work; all functions take bundles. Fields in
capitals are constants. Triton keeps constants in arguments of calls, but turns them into values
when a bundle is assigned to a name or returned, so bundles with constants are only passed on.
"""

from typing import Any

import triton.language as tl


class _Imported:
    """A class whose ``repr`` imports it."""

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.cls(*args, **kwargs)

    def __repr__(self) -> str:
        return f'__import__({self.cls.__module__!r}, fromlist=["_"]).{self.cls.__name__}'


class bundle(tl.constexpr):
    """Class decorator that turns a named tuple into a constant of Triton.

    Inductor copies kernels and the functions that they call, but no classes. It writes constants
    by the ``repr`` of their values. Triton compares constants at each launch; identity is cheap.
    """

    __eq__ = object.__eq__
    __ne__ = object.__ne__
    __hash__ = object.__hash__

    def __init__(self, cls: type) -> None:
        super().__init__(_Imported(cls))

    def __deepcopy__(self, memo: dict) -> 'bundle':
        return self
