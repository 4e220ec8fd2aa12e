# SPDX-License-Identifier: Apache-2.0
"""The kernels for GPUs against the reference: on a GPU if there is one, else interpreted."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from mmfocal import compat
from mmfocal.ops.focal_attention import FocalBias, FocalGeometry, FocalInputs
from mmfocal.ops.focal_attention.impl import triton as backend
from mmfocal.ops.focal_attention.impl.triton import attention, configs
from tests.helpers.attention import call, make_inputs, run, to_bias, to_tokens
from tests.helpers.launches import launches
from tests.helpers.triton import (
    DEVICE,
    SHARPEST,
    check,
    check_half,
    few_images,
    needs_compilers,
    run_compiler,
)

pytestmark = [
    pytest.mark.skipif(not backend.INSTALLED, reason='needs Triton'),
    pytest.mark.filterwarnings('ignore::DeprecationWarning:triton.*'),  # from its interpreter
]
# Window, expand, focal window, level; windows down and across; shift. Small, as programs and
# blocks are interpreted one by one.

CASES = {
    'detection': (FocalGeometry(7, 3, 3, 2), (2, 2), 0),
    'one window': (FocalGeometry(7, 3, 7, 2), (1, 1), 0),
    'window only': (FocalGeometry(5), (2, 1), 0),
    'global only, shift': (FocalGeometry(3, 0, 3, 2), (2, 2), 1),
    'three levels, shift': (FocalGeometry(4, 1, 1, 3), (2, 2), 2),
    'holes between keys': (FocalGeometry(4, 4, 1, 2), (1, 3), 0),
    'blocks of queries': (FocalGeometry(9, 2, 1, 2), (1, 1), 0),
}


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('case', CASES)
def test_equals_reference(case: str) -> None:
    check(*CASES[case], dim=8)


@pytest.mark.parametrize('case', CASES)
def test_equals_reference_deterministically(case: str, deterministic: None) -> None:
    check(*CASES[case], dim=8)


@pytest.mark.parametrize('dim', [1, 49])
def test_head_dims_that_are_no_powers_of_two(dim: int) -> None:
    check(FocalGeometry(2, 1, 1, 2), (1, 1), heads=3, dim=dim)


def test_several_images(deterministic: None) -> None:
    check(FocalGeometry(2, 1, 1, 2), (2, 1), images=2)
    torch.use_deterministic_algorithms(False)
    check(FocalGeometry(2, 1, 1, 2), (2, 1), images=2)


def test_rounds_as_well_as_reference() -> None:
    check(FocalGeometry(3, 1, 1, 3), (1, 2), 1, dtype=torch.float32)


@pytest.mark.parametrize('factor', [1.0, 10.0], ids=['usual', 'large logits'])
def test_half_precision(factor: float) -> None:
    check_half(FocalGeometry(3, 1, 1, 3), (1, 2), 1, torch.float16, factor)


def test_strips_of_several_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two strips, the second shorter."""
    monkeypatch.setattr(attention, 'BIAS_PROGRAMS', 2)
    check(FocalGeometry(2, 1, 1, 2), (1, 3), heads=1, images=1)


@pytest.mark.parametrize('layout', ['channels first', 'cropped', 'expanded'])
def test_strided_input(layout: str) -> None:
    geometry, windows = FocalGeometry(2), (2, 1)
    inputs = {k: v.to(DEVICE, SHARPEST) for k, v in make_inputs(geometry, windows).items()}
    qkv = to_tokens(inputs, geometry)
    strided = {
        'channels first': lambda: qkv.transpose(1, 2).contiguous().transpose(1, 2),
        'cropped': lambda: torch.nn.functional.pad(qkv, (1, 2, 3, 4))[:, 3:-4, 1:-2],
        'expanded': lambda: qkv[:1].expand(2, -1, -1),
    }[layout]()
    grads = []
    for make in (lambda x: x, Tensor.contiguous):
        leaf = make(strided).detach().requires_grad_()
        out = attention.focal_attention(
            FocalInputs(leaf, (4, 2), to_bias(inputs, geometry), geometry, 0.4),
            backend.combined_columns(to_bias(inputs, geometry), geometry),
        )
        # The gradient of a sum has no strides at all.
        grads += [out.detach(), *torch.autograd.grad(out.sum(), leaf)]
    assert not strided.is_contiguous()
    torch.testing.assert_close(grads[:2], grads[2:])


def test_empty_batch() -> None:
    geometry, windows, _ = CASES['detection']
    inputs = make_inputs(geometry, windows)
    empty = {k: v[:0] if 'kv' in k else v for k, v in inputs.items()}
    grads = run(empty, geometry, 'triton', SHARPEST, DEVICE)
    assert grads['out'].shape == (0, 14, 14, 10)
    assert all(value.abs().sum() == 0 for value in grads.values())


def test_saves_neither_keys_nor_weights() -> None:
    geometry, windows = FocalGeometry(7, 3, 3, 2), (2, 3)
    inputs = make_inputs(geometry, windows)
    leaves = {k: v.to(DEVICE, SHARPEST).requires_grad_() for k, v in inputs.items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        out = call(leaves, geometry, 'triton')
    # Inputs, output, and one number per query and head.
    maps = 2 * out.numel() + sum(value.numel() for value in leaves.values())
    maps += to_tokens(inputs, geometry).numel()
    bias = 2 * 49 * backend.columns.num_columns(geometry)  # combined, once for all windows
    logits = 2 * 6 * bias  # images, windows
    storages = {x.untyped_storage().data_ptr(): x.numel() for x in saved}
    assert sum(storages.values()) < maps + 2 * bias < logits


def op_arguments() -> tuple:
    geometry = FocalGeometry(2, 1, 1, 2)
    inputs = {k: v.to(DEVICE, SHARPEST) for k, v in few_images(geometry, (1, 2), heads=1).items()}
    bias = backend.combined_columns(to_bias(inputs, geometry), geometry)
    qkv = to_tokens(inputs, geometry).nan_to_num(0)  # opcheck compares arguments with themselves
    return qkv, bias, 2, 4, [2, 1, 1, 2], 1, 0.4


def backward_arguments() -> tuple:
    qkv, bias, _, _, *others = op_arguments()
    out, log_sum = attention.attend(*op_arguments())
    return torch.ones_like(out), qkv, bias, out, log_sum, *others


def test_opcheck() -> None:
    torch.library.opcheck(attention.attend.operator, op_arguments())
    torch.library.opcheck(attention.attend_backward.operator, backward_arguments())


@pytest.mark.parametrize(
    ('dtype', 'is_ordered', 'backward'),
    [
        (torch.float32, False, ['prepare_kernel', 'gradient_kernel', 'finish_kernel']),
        (
            torch.bfloat16,
            True,
            [
                'prepare_kernel',
                *['gradient_kernel'] * 2,  # a block of keys of each region
                *['key_gradient_kernel'] * 2,
                'finish_kernel',
            ],
        ),
    ],
)
def test_launches(
    dtype: torch.dtype, is_ordered: bool, backward: list[str], request: pytest.FixtureRequest
) -> None:
    """Launches in eager mode; strided tokens need one more copy."""
    if is_ordered:
        request.getfixturevalue('deterministic')
    qkv, bias, *rest = op_arguments()
    qkv, bias = qkv.to('meta', dtype), bias.to('meta', torch.float32)
    forward = attention.attend.operator
    assert launches(forward, qkv, bias, *rest) == ['forward_kernel']
    strided = qkv.mT.contiguous().mT
    assert launches(forward, strided, bias, *rest) == [
        'aten.clone.default',
        'forward_kernel',
    ]
    d_out, _, _, out, log_sum, *rest = backward_arguments()
    maps = (d_out.to('meta', dtype), qkv, bias, out.to('meta', dtype), log_sum.to('meta'))
    assert launches(attention.attend_backward.operator, *maps, *rest) == backward


def test_watched_calls_run_operators() -> None:
    """Dispatch modes see one operator forward and one backward."""
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            seen.append(operator)
            return operator(*args, **(kwargs or {}))

    geometry = FocalGeometry(2, 1, 1, 2)
    inputs = few_images(geometry, (1, 1), heads=1)
    leaves = {k: v.to(DEVICE, SHARPEST).requires_grad_() for k, v in inputs.items()}
    with Watch():
        call(leaves, geometry, 'triton').sum().backward()
    ours = [operator for operator in seen if operator.namespace == 'mmfocal']
    operators_of_attention = [attention.attend.operator, attention.attend_backward.operator]
    assert [x for x in ours if x in operators_of_attention] == operators_of_attention


def test_compiles_whole_for_all_sizes() -> None:
    """Once for the first size, once for any other."""
    geometry = FocalGeometry(2, 1, 1, 2)
    counter = torch._dynamo.testing.CompileCounterWithBackend('aot_eager')

    def attend(leaves: dict[str, Tensor], impl: str) -> Tensor:
        return call(leaves, geometry, impl)

    compiled = torch.compile(attend, fullgraph=True, backend=counter)
    for windows in ((2, 3), (3, 2), (4, 2)):
        inputs = few_images(geometry, windows, heads=1)
        results = []
        for function, impl in ((compiled, 'triton'), (attend, 'reference')):
            leaves = {k: v.to(DEVICE, SHARPEST).requires_grad_() for k, v in inputs.items()}
            out = function(leaves, impl)
            results.append([out, *torch.autograd.grad(out.square().sum(), leaves.values())])
        torch.testing.assert_close(*results)
    assert counter.frame_count == 2


def test_second_derivative_is_unsupported() -> None:
    qkv, bias, *rest = op_arguments()
    out = attention.Attend.apply(qkv.requires_grad_(), bias, *rest)
    with pytest.raises(RuntimeError, match=r"second derivatives .* use attn_impl='sdpa'"):
        torch.autograd.grad(out.square().sum(), qkv, create_graph=True)


def on_meta(inputs: dict[str, Tensor], geometry: FocalGeometry, impl: str) -> None:
    call({k: v.to('meta') for k, v in inputs.items()}, geometry, impl)


def with_dropout(inputs: dict[str, Tensor], geometry: FocalGeometry, impl: str) -> None:
    call(inputs, geometry, impl, dropout_p=0.1)


def under_vmap(inputs: dict[str, Tensor], geometry: FocalGeometry, impl: str) -> None:
    def attend(qkv: Tensor) -> Tensor:
        return call(inputs | {'qkv': qkv}, geometry, impl)

    torch.func.vmap(attend)(inputs['qkv'][None])


def under_tracing(inputs: dict[str, Tensor], geometry: FocalGeometry, impl: str) -> None:
    torch.jit.trace(
        lambda qkv: call(inputs | {'qkv': qkv}, geometry, impl), inputs['qkv'], check_trace=False
    )


def under_export(inputs: dict[str, Tensor], geometry: FocalGeometry, impl: str) -> None:
    class Attention(torch.nn.Module):
        def forward(self, qkv: Tensor) -> Tensor:
            return call(inputs | {'qkv': qkv}, geometry, impl)

    torch.export.export(Attention(), (inputs['qkv'],), strict=False)


@pytest.mark.parametrize(
    ('situation', 'geometry', 'dim', 'reason'),
    [
        (on_meta, FocalGeometry(2, 1, 1, 2), 5, 'the device meta is not supported'),
        (with_dropout, FocalGeometry(2, 1, 1, 2), 5, 'attention dropout is not supported'),
        (under_vmap, FocalGeometry(2), 5, 'transforms of torch.func and .* are not supported'),
        (under_tracing, FocalGeometry(2, 1, 1, 2), 5, 'exporting and tracing are not supported'),
        (under_export, FocalGeometry(2), 5, 'exporting and tracing are not supported'),
        (call, FocalGeometry(17), 5, 'windows over 16 are not supported, got 17'),
        (call, FocalGeometry(2), 129, 'more than 128 channels per head are not .*, got 129'),
    ],
)
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_unsupported(situation: Callable, geometry: FocalGeometry, dim: int, reason: str) -> None:
    values = make_inputs(geometry, (1, 1), heads=1, dim=dim)
    inputs = {k: v.to(DEVICE, torch.float32) for k, v in values.items()}
    with pytest.raises(ValueError, match=f"'triton' cannot run here: .*{reason}"):
        situation(inputs, geometry, 'triton')
    situation(inputs, geometry, 'auto')


@pytest.mark.parametrize(
    ('layout', 'fitting'),
    [
        (lambda x: x, 22369621),  # times 96 is just below 2**31
        (lambda x: x.mT.contiguous().mT, 22369621),  # is made contiguous
        (lambda x: torch.empty(*x.shape[:2], 192, device='meta')[..., :96], 11184811),
    ],
)
def test_images_whose_offsets_need_more_than_32_bits(
    layout: Callable[[Tensor], Tensor], fitting: int
) -> None:
    table = FocalBias(torch.empty(1, 1, device='meta'))  # takes no memory

    def reasons(tokens: int) -> list[str]:
        qkv = layout(torch.empty(1, tokens, 96, device='meta'))
        inputs = FocalInputs(qkv, (1, tokens), table, FocalGeometry(1), 1.0)
        return [x for x in backend.unsupported_reasons(inputs) if '2147483648' in x]

    assert reasons(fitting) == []
    (reason,) = reasons(fitting + 1)
    assert f'{fitting + 1} tokens' in reason and '96 channels' in reason


def test_needs_a_gpu_and_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = FocalGeometry(2)
    inputs = make_inputs(geometry, (1, 1))
    monkeypatch.setattr(backend, 'INTERPRETED', False)
    monkeypatch.setattr(backend, 'IS_TOO_OLD', True)
    message = r'Triton 3.3 or newer is needed, .*the device cpu is not supported, only cuda is'
    with pytest.raises(ValueError, match=message):
        call(inputs, geometry, 'triton')
    monkeypatch.setattr(backend, 'INSTALLED', False)
    with pytest.raises(ValueError, match='Triton is not installed'):
        call(inputs, geometry, 'triton')


@pytest.mark.skipif(torch.version.hip is not None, reason='needs an NVIDIA release')
def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bfloat16 needs compute capability 8.0; AMD GPUs, whose devices are cuda, are unsupported."""

    def reasons(dtype: torch.dtype) -> list[str]:
        return backend.device_reasons(torch.device('cuda', 0), dtype)

    monkeypatch.setattr(backend, 'INTERPRETED', False)
    monkeypatch.setattr(backend, 'capability', lambda device: (7, 5))
    assert reasons(torch.float32) == reasons(torch.float16) == []
    needed = 'torch.bfloat16 needs compute capability 8.0, this GPU has 7.5'
    assert reasons(torch.bfloat16) == [needed]
    monkeypatch.setattr(torch.version, 'hip', '6.4')
    assert reasons(torch.float32) == ['AMD GPUs are not supported']


@pytest.mark.parametrize('capability', [7, 8, 9, 12])
def test_every_head_dim_has_a_configuration(
    capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest one where none has been chosen; newer GPUs get what capability 8 has."""
    monkeypatch.setattr(configs, 'INTERPRETED', False)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for head_dim in range(1, backend.MAX_HEAD_DIM + 1):
            smallest = configs.fitting(dtype, head_dim)[0]
            assert min(32, configs.largest_block(dtype, head_dim)) == smallest.BLOCK_K
            for kernel in ('forward', 'gradient'):
                row = {12: 8}.get(capability, capability)
                key = (kernel, dtype.itemsize, configs.block(head_dim), row)
                chosen = configs.choose.__wrapped__(kernel, dtype, head_dim, capability)
                assert chosen == configs._CHOSEN.get(key, smallest)


@pytest.mark.skipif(DEVICE == 'cuda', reason='replaces the clock and the driver')
def test_tuning_prints_the_fastest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """In the form of the chosen configurations; results stay as they are."""
    import triton

    times = iter([3.0, 2.0, 1.0, 4.0, 5.0] * 2)  # of each configuration, forward and backward

    def benchmark(run: Callable, quantiles: tuple) -> list[float]:
        run()
        return [next(times)] * 3

    clock = SimpleNamespace(get_benchmarker=lambda: benchmark)
    driver = triton.runtime.driver
    name = '_active' if hasattr(driver, '_active') else 'active'
    monkeypatch.setattr(driver, name, clock)
    monkeypatch.setattr(configs, 'is_tuning', lambda: True)
    check(FocalGeometry(2, 1, 1, 2), (1, 2))
    lines = capsys.readouterr().out.splitlines()
    best = 'Config(BLOCK_K=64, num_warps=4, num_stages=1)'
    assert lines == [f"('forward', 8, 16, 0): {best},", f"('gradient', 8, 16, 0): {best},"]


@needs_compilers
@pytest.mark.skipif(not compat.infers_schemas(), reason='this PyTorch does not trace kernels')
def test_compiled_models_start_kernels_themselves() -> None:
    """But for those of the bias; no input is written to, since compilers copy what is."""
    bias = 'mmfocal.combined_columns{}.default'
    forward = ['pool_kernel tokens_ptr', bias.format('')]
    forward += ['forward_kernel log_sum_ptr out_ptr', 'prepare_kernel delta_ptr sums_ptr']
    gradient, finish = 'gradient_kernel d_bias_ptr sums_ptr', 'finish_kernel d_bias_ptr d_qkv_ptr'
    last = [
        finish,
        bias.format('_backward'),
        'pool_backward_kernel d_x_ptr sums_ptr',
    ]
    ordered = [*[gradient] * 2, *['key_gradient_kernel sums_ptr'] * 2]
    found = [' '.join(words) for words in run_compiler('traced')]
    assert found == [*forward, gradient, *last, *forward, *ordered, *last]


@needs_compilers
@pytest.mark.parametrize(
    ('dtype', 'head_dim', 'capability', 'config', 'kib'),
    [
        ('float16', 32, 80, 'smallest', 64),
        ('float32', 8, 80, 'smallest', 64),
        ('float32', 128, 90, 'smallest', 64),
        ('bfloat16', 49, 90, 'chosen', 227),
        ('bfloat16', 32, 90, 'chosen', 227),
        ('bfloat16', 32, 120, 'chosen', 99),
        ('bfloat16', 128, 90, 'largest', 227),
    ],
)
def test_compiles_for_gpus(
    dtype: str, head_dim: int, capability: int, config: str, kib: int
) -> None:
    """No GPU is needed to compile.

    The smallest configuration has to fit every GPU, the others what the GPU of the capability has.
    A kernel is compiled once for all stages of a model: the call names two. Kernels that add and
    convert load and store vectors, except for one result of a sum.
    """
    kernels = run_compiler('attention', dtype, head_dim, capability, config)
    assert [name for name, *_ in kernels] == [
        'forward_kernel',
        'prepare_kernel',
        'gradient_kernel',
        'finish_kernel',
        'gradient_kernel',  # in a fixed order
        *['key_gradient_kernel'] * (2 if dtype != 'float32' and head_dim <= 64 else 1),  # tiles
    ]
    assert max(int(size) for _, size, _ in kernels) <= kib * 1024
    scalar = {name: int(count) for name, _, count in kernels}
    assert scalar['finish_kernel'] == 1
    assert scalar['prepare_kernel'] == 1 or head_dim == 49
