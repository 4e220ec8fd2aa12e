# SPDX-License-Identifier: Apache-2.0
"""Compiles, without a GPU, what calls would start on one.

Prints each kernel's name, its shared memory in bytes, and how many instructions of its code load
or store single values in global memory, not vectors.

Run as ``python -m tests.helpers.compile_only bias``, ``tokens`` or ``attention DTYPE HEAD_DIM
CAPABILITY CONFIG``, without ``TRITON_INTERPRET``. A kernel is compiled once.
``traced`` prints each kernel in the graphs of a compiled pass, and the tensors that it writes to.
"""

import builtins
import dis
import importlib.util
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import triton
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from torch._inductor.codegen import wrapper
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type

from mmfocal.ops.focal_attention import FocalBias, FocalGeometry, FocalInputs
from mmfocal.ops.focal_attention.impl.triton import attention, bias, configs, operators, tokens
from mmfocal.ops.focal_attention.impl.triton.columns import num_columns

CAPABILITY = [90]
_compiled: set[str] = set()


def is_multiple(parameter: Any, value: float) -> bool:
    """Whether a launch passes that a size is a multiple of 16."""
    return isinstance(value, int) and not parameter.do_not_specialize and value % 16 == 0


def specialize(kernel: Any, values: dict[str, Any], constants: dict[str, Any]) -> dict:
    """Attributes that a launch passes for pointers and for sizes that are multiples of 16."""
    return {
        (place,): [['tt.divisibility', 16]]
        for place, parameter in enumerate(kernel.params)
        if parameter.name not in constants
        and (
            hasattr(values[parameter.name], 'dtype')
            or is_multiple(parameter, values[parameter.name])
        )
    }


def import_copy(kernel: Any) -> ModuleType:
    """Import the source of a kernel as Inductor copies it into the code that it writes."""
    source = wrapper.user_defined_triton_kernel_transitive_closure_source_code(kernel)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'copy_of_kernel.py')
        path.write_text('import triton\nimport triton.language as tl\n@triton.jit\n' + source)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def check_copy(kernel: Any) -> None:
    """Check that the copy defines every name that it uses."""
    module = import_copy(kernel)
    defined = vars(module).keys() | vars(builtins).keys()
    functions = [x for x in vars(module).values() if isinstance(x, triton.JITFunction)]
    assert kernel.__name__ in [function.__name__ for function in functions]
    for function in functions:
        loads = (step for step in dis.Bytecode(function.fn) if step.opname == 'LOAD_GLOBAL')
        missing = {step.argval for step in loads} - defined
        assert not missing, f'{function.__name__} uses {missing}'


def by_name(kernel: Any, args: tuple, constants: dict[str, Any]) -> tuple[dict, dict]:
    """Arguments of a launch by name, and its options, which are taken out of the constants."""
    options = {n: constants.pop(n) for n in ('num_warps', 'num_stages') if n in constants}
    values = dict(zip(kernel.arg_names, args), **constants)
    assert set(values) == set(kernel.arg_names), set(values) ^ set(kernel.arg_names)
    return values, options


def compile_kernel(
    kernel: Any, grid: tuple[int, ...], like: Tensor, *args: Any, **constants: Any
) -> None:
    """Replace ``operators.start``: compile a kernel unless it is compiled already."""
    values, options = by_name(kernel, args, constants)
    names = kernel.arg_names
    types = {
        n: 'constexpr' if n in constants else 'i32' if isinstance(v, int) else mangle_type(v)
        for n, v in values.items()
    }
    attributes = specialize(kernel, values, constants)
    key = str((kernel.__name__, types, attributes, sorted(constants.items()), options))
    if key in _compiled:
        return
    _compiled.add(key)
    check_copy(kernel)
    source = ASTSource(
        kernel,
        signature={n: types[n] for n in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=attributes,
    )
    target = GPUTarget('cuda', CAPABILITY[0], 32)
    compiled = triton.compile(source, target=target, options=options)
    assert compiled.asm['cubin']
    accesses = re.findall(r'\b(?:ld|st)\.global[.\w]*', compiled.asm['ptx'])
    scalar = [access for access in accesses if '.v' not in access]
    print(kernel.__name__, compiled.metadata.shared, len(scalar))


def bias_calls() -> None:
    tables = [torch.zeros(169, 3), torch.zeros(1, 3, 49, 132), torch.zeros(3, 81)]
    sizes = [7, 3, 3, 2]
    combined = bias.combine.launcher(tables, sizes)
    bias.combine_backward.launcher(combined, combined, tables, sizes)


def tokens_calls() -> None:
    """Two stages of a model, which share their kernels."""
    weights, biases = [torch.zeros(1, 49)], [torch.zeros(1)]
    for side, channels in ((28, 96), (14, 192)):
        x = torch.zeros(1, side, side, channels)
        out = tokens.pool.launcher(x, weights, biases, [7, 3, 7, 2], 3, torch.bfloat16)
        tokens.pool_backward.launcher(
            out, out, weights, [7, 3, 7, 2], 3, side, side, torch.float32
        )


def attention_calls(dtype: str, head_dim: str, capability: str, config: str) -> None:
    """Call two stages of a model, which share kernels, and the kernels of the fixed order."""
    CAPABILITY[0], dtype, head_dim = int(capability), getattr(torch, dtype), int(head_dim)
    attention.capability = lambda _: (CAPABILITY[0] // 10, 0)
    if config != 'chosen':
        fitting = configs.fitting(dtype, head_dim)[0 if config == 'smallest' else -1]
        attention.Plan.choose = lambda *_: fitting

    def call(num_heads: int, scale: float, shift: int, *sizes: int) -> None:
        geometry = FocalGeometry(*sizes)
        qkv = torch.zeros(2, geometry.num_tokens(14, 28), 3 * num_heads * head_dim, dtype=dtype)
        bias = torch.zeros(num_heads, 49, num_columns(geometry))
        out, log_sum = attention.attend.launcher(qkv, bias, 14, 28, sizes, shift, scale)
        attention.attend_backward.launcher(out, qkv, bias, out, log_sum, sizes, shift, scale)

    call(32, 1.0, 3, 7, 3, 7, 2)
    call(16, 0.5, 3, 7, 0, 1, 2)
    torch.use_deterministic_algorithms(True)
    call(32, 1.0, 3, 7, 3, 7, 2)


def print_graph(graph: torch.fx.GraphModule, _: list) -> Callable:
    """Print the kernels and opaque operators of a graph; return a function that computes nothing.

    This takes the place of Inductor, which starts the kernels that are in its graph.
    """
    for node in graph.graph.nodes:
        if 'tensors_to_clone' in node.kwargs:
            kernel = kernel_side_table.get_kernel(node.kwargs['kernel_idx'])
            print(kernel.fn.__name__, *sorted(node.kwargs['tensors_to_clone']))
        elif str(node.target).startswith('mmfocal'):
            print(node.target)
    values = [getattr(node, 'meta', {}).get('val') for node in graph.graph.output_node().args[0]]
    return make_boxed_func(lambda *_: [None if x is None else zeros_like(x) for x in values])


def zeros_like(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).zero_()


def trace(dtype: torch.dtype) -> None:
    """Compile tokens, combined bias and attention as one graph, forward and backward."""
    geometry, backend = FocalGeometry(2, 1, 1, 2), aot_autograd(fw_compiler=print_graph)

    @torch.compile(fullgraph=True, backend=backend)
    def attend(x: Tensor, weight: Tensor, pool_bias: Tensor, *tables: Tensor) -> Tensor:
        pooled = tokens.pool_tokens(x, [weight], [pool_bias], geometry, 1)
        tables = FocalBias(*tables[:2], tables[2:])
        combined = bias.combined_columns(tables, geometry)
        inputs = FocalInputs(torch.cat([pooled] * 3, -1), (4, 6), tables, geometry, 1.0, 1)
        return attention.focal_attention(inputs, combined)

    shapes = [(1, 4), (1,), (9, 1), (1, 1, 4, 12), (1, 4)]
    parameters = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    attend(torch.zeros(2, 3, 5, 16, dtype=dtype, requires_grad=True), *parameters).sum().backward()


def trace_all() -> None:
    """Trace both orders of summation."""
    trace(torch.float32)
    torch.use_deterministic_algorithms(True)
    trace(torch.bfloat16)


if __name__ == '__main__':
    if sys.argv[1] != 'traced':
        for module in (operators, attention, bias, tokens):
            module.start = compile_kernel
    # asks for no GPU
    target = SimpleNamespace(get_current_target=lambda: GPUTarget('cuda', CAPABILITY[0], 32))
    triton.runtime.driver.set_active(target)
    calls = {'bias': bias_calls, 'tokens': tokens_calls, 'attention': attention_calls}
    (calls | {'traced': trace_all})[sys.argv[1]](*sys.argv[2:])
