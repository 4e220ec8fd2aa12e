# SPDX-License-Identifier: Apache-2.0
"""Compiles, without a GPU, what calls would start on one; prints each kernel's name and size.

Run as ``python -m tests.ops.compile_only bias`` or ``tokens``, without ``TRITON_INTERPRET``.
"""

import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type

from mmfocal.ops.focal_attention.impl.triton import bias, operators, tokens

CAPABILITY = 90


def compile_kernel(
    kernel: Any, grid: tuple[int, ...], like: Tensor, *args: Any, **constants: Any
) -> None:
    """In place of ``operators.start``."""
    options = {n: constants.pop(n) for n in ('num_warps', 'num_stages') if n in constants}
    names = kernel.arg_names
    values = dict(zip(names, args), **constants)
    assert set(values) == set(names), set(values) ^ set(names)
    types = {
        n: 'constexpr' if n in constants else mangle_type(v) if hasattr(v, 'dtype') else 'i32'
        for n, v in values.items()
    }
    positions = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature={n: types[n] for n in names}, constexprs=positions)
    compiled = triton.compile(source, target=GPUTarget('cuda', CAPABILITY, 32), options=options)
    assert compiled.asm['cubin']
    print(kernel.__name__, compiled.metadata.shared)


def bias_calls() -> None:
    tables = [torch.zeros(169, 3), torch.zeros(1, 3, 49, 132), torch.zeros(3, 81)]
    sizes = [7, 3, 3, 2]
    combined = bias.combine.launcher(tables, sizes)
    bias.combine_backward.launcher(combined, combined, tables, sizes)


def tokens_calls() -> None:
    x, weights, biases = torch.zeros(1, 14, 14, 96), [torch.zeros(1, 49)], [torch.zeros(1)]
    out = tokens.pool.launcher(x, weights, biases, [7, 2], 3, torch.bfloat16)
    tokens.pool_backward.launcher(out, x, weights, [7, 2], 3)


if __name__ == '__main__':
    for module in (operators, bias, tokens):
        module.start = compile_kernel
    {'bias': bias_calls, 'tokens': tokens_calls}[sys.argv[1]]()
