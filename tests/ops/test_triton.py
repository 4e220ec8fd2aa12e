# SPDX-License-Identifier: Apache-2.0
"""The kernels for GPUs against the reference: on a GPU if there is one, else interpreted."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from mmfocal.ops.focal_attention import FocalBias, FocalGeometry
from mmfocal.ops.focal_attention.geometry import merged_bias
from mmfocal.ops.focal_attention.impl import triton as backend
from tests.ops.test_focal_attention import call, make_inputs, run

pytestmark = [
    pytest.mark.skipif(not backend.INSTALLED, reason='needs Triton'),
    pytest.mark.filterwarnings('ignore::DeprecationWarning:triton.*'),  # from its interpreter
]

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
# The interpreter knows float64, in which a wrong term cannot hide behind rounding.
SHARPEST = torch.float32 if DEVICE == 'cuda' else torch.float64

# window, expand, focal window, level, shift; windows down and across: small, as programs and
# blocks are interpreted one by one
CASES = {
    'detection': (FocalGeometry(7, 3, 3, 2), (2, 2)),
    'one window': (FocalGeometry(7, 3, 7, 2), (1, 1)),
    'window only': (FocalGeometry(5), (2, 1)),
    'global only, shift': (FocalGeometry(3, 0, 3, 2, shift_size=1), (2, 2)),
    'three levels, shift': (FocalGeometry(4, 1, 1, 3, shift_size=2), (2, 2)),
    'holes between keys': (FocalGeometry(4, 4, 1, 2), (1, 3)),
    'blocks of queries': (FocalGeometry(9, 2, 1, 2), (1, 1)),
}


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def few_images(
    geometry: FocalGeometry, windows: tuple[int, int], images: int = 1, **shape: int
) -> dict[str, Tensor]:
    """See ``make_inputs``."""
    inputs = make_inputs(geometry, windows, **shape)
    return {name: value[:images] if 'kv' in name else value for name, value in inputs.items()}


def check(
    geometry: FocalGeometry,
    windows: tuple[int, int],
    dtype: torch.dtype = SHARPEST,
    **shape: int,
) -> None:
    """Compare output and every gradient with the reference in float64."""
    inputs = few_images(geometry, windows, **shape)
    truth = run(inputs, geometry, 'reference', torch.float64, DEVICE)
    plain = run(inputs, geometry, 'reference', dtype, DEVICE)
    ours = run(inputs, geometry, 'triton', dtype, DEVICE)
    terms = inputs['qkv'][..., 0].numel() * geometry.window_size**2
    for name, value in truth.items():
        rounding = torch.finfo(dtype).eps * value.abs().max()
        if dtype == torch.float64:  # worst case of a sum over all positions
            bound = terms * rounding
        else:  # as often as the reference, and four roundings
            bound = 2 * (plain[name] - value).abs().max() + 4 * rounding
        error = (ours[name] - value).abs().max()
        assert error <= bound, f'{name}: error {error:.1e}, bound {bound:.1e}'


def check_half(
    geometry: FocalGeometry, windows: tuple[int, int], dtype: torch.dtype, **shape: int
) -> None:
    """Maps in half precision, tables in float32, as under autocast."""
    inputs = few_images(geometry, windows, **shape)
    leaves = {
        name: value.to(DEVICE, dtype if 'kv' in name else torch.float32).requires_grad_()
        for name, value in inputs.items()
    }
    exact = {name: value.detach().double().requires_grad_() for name, value in leaves.items()}
    out, truth = call(leaves, geometry, 'triton'), call(exact, geometry, 'reference')
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    out.backward(seed)
    truth.backward(seed.double())
    assert out.dtype == dtype
    pairs = {'out': (out, truth), **{f'd_{k}': (leaves[k].grad, exact[k].grad) for k in leaves}}
    for name, (value, expected) in pairs.items():
        # Rounded to half precision: weights, gradients of logits, the output, and the result.
        bound = 4 * torch.finfo(dtype).eps * expected.abs().max()
        error = (value - expected).abs().max()
        assert error <= bound, f'{name}: error {error:.1e}, bound {bound:.1e}'


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
    check(FocalGeometry(3, 1, 1, 3, shift_size=1), (1, 2), dtype=torch.float32)


def test_half_precision() -> None:
    check_half(FocalGeometry(3, 1, 1, 3, shift_size=1), (1, 2), torch.float16)


def test_strips_of_several_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two strips, the second shorter."""
    monkeypatch.setattr(backend.function, 'BIAS_PROGRAMS', 2)
    check(FocalGeometry(2, 1, 1, 2), (1, 3), heads=1, images=1)


@pytest.mark.parametrize('layout', ['channels first', 'cropped', 'expanded'])
def test_strided_input(layout: str) -> None:
    geometry, windows = FocalGeometry(2), (2, 1)
    inputs = {k: v.to(DEVICE, SHARPEST) for k, v in make_inputs(geometry, windows).items()}
    qkv = inputs['qkv']
    strided = {
        'channels first': lambda: qkv.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        'cropped': lambda: torch.nn.functional.pad(qkv, (1, 2, 3, 4))[:, :, 3:-4, 1:-2],
        'expanded': lambda: qkv[:1].expand(2, -1, -1, -1),
    }[layout]()
    grads = []
    for make in (lambda x: x, Tensor.contiguous):
        leaf = make(strided).detach().requires_grad_()
        out = call(inputs | {'qkv': leaf}, geometry, 'triton')
        # The gradient of a sum has no strides at all.
        grads += [out.detach(), *torch.autograd.grad(out.sum(), leaf)]
    assert not strided.is_contiguous()
    torch.testing.assert_close(grads[:2], grads[2:])


def test_empty_batch() -> None:
    geometry, windows = CASES['detection']
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
    maps = out.numel() + sum(value.numel() for value in leaves.values())
    bias = 2 * 49 * (169 + 9)  # composed, once for all windows; its parts are saved as well
    logits = 2 * 6 * bias  # images, windows
    storages = {x.untyped_storage().data_ptr(): x.numel() for x in saved}
    assert sum(storages.values()) < maps + 5 * bias < logits


def op_arguments(requires_grad: bool = True) -> tuple:
    geometry = FocalGeometry(2, 1, 1, 2, shift_size=1)
    inputs = {k: v.to(DEVICE, SHARPEST) for k, v in few_images(geometry, (1, 2), heads=1).items()}
    bias = FocalBias(inputs['own'], inputs['neighbors'], (inputs['coarse.0'],))
    tensors = [
        inputs['qkv'],
        inputs['coarse_kv.0'].flatten(1, 2),
        merged_bias(bias, geometry).contiguous(),
    ]
    return *(x.requires_grad_(requires_grad) for x in tensors), [2, 1, 1, 2, 1], 0.4


def test_opcheck_forward() -> None:
    torch.library.opcheck(backend.function.attend, op_arguments())


def test_opcheck_backward() -> None:
    qkv, coarse, bias, *rest = op_arguments(requires_grad=False)
    out, log_sum = backend.function.attend(qkv, coarse, bias, *rest)
    arguments = (torch.ones_like(out), qkv, coarse, bias, out, log_sum, *rest)
    torch.library.opcheck(backend.function.attend_backward, arguments)


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


def test_second_derivative_is_refused() -> None:
    qkv, *rest = op_arguments()
    out, _ = backend.function.attend(qkv, *rest)
    (gradient,) = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative .* choose attn_impl='sdpa'"):
        gradient.sum().backward()


def on_meta(inputs: dict[str, Tensor], geometry: FocalGeometry, impl: str) -> None:
    call({k: v.to('meta') for k, v in inputs.items()}, geometry, impl)


def with_dropout(inputs: dict[str, Tensor], geometry: FocalGeometry, impl: str) -> None:
    call(inputs, geometry, impl, dropout_p=0.1)


def with_mixed_dtypes(inputs: dict[str, Tensor], geometry: FocalGeometry, impl: str) -> None:
    call(inputs | {'qkv': inputs['qkv'].half()}, geometry, impl)


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
        (on_meta, FocalGeometry(2, 1, 1, 2), 5, 'not on meta'),
        (with_dropout, FocalGeometry(2, 1, 1, 2), 5, 'drops no attention weights'),
        (with_mixed_dtypes, FocalGeometry(2, 1, 1, 2), 5, 'qkv and coarse_kv of one dtype'),
        (under_tracing, FocalGeometry(2, 1, 1, 2), 5, 'cannot be exported or traced'),
        (under_export, FocalGeometry(2), 5, 'cannot be exported or traced'),
        (call, FocalGeometry(17), 5, 'windows up to 16, not 17'),
        (call, FocalGeometry(2), 129, 'up to 128 channels per head, not 129'),
    ],
)
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_refusals(situation: Callable, geometry: FocalGeometry, dim: int, reason: str) -> None:
    values = make_inputs(geometry, (1, 1), heads=1, dim=dim)
    inputs = {k: v.to(DEVICE, torch.float32) for k, v in values.items()}
    with pytest.raises(ValueError, match=f"'triton' cannot run here: .*{reason}"):
        situation(inputs, geometry, 'triton')
    situation(inputs, geometry, 'auto')


def size_refusals(height: int, layout: Callable[[Tensor], Tensor]) -> list[str]:
    """Reasons against an image that is 2**14 wide with 32 channels, which takes no memory."""
    qkv = layout(torch.empty(1, height, 2**14, 96, device='meta'))
    coarse = torch.empty(1, height // 2, 2**13, 64, device='meta')
    table = torch.empty(1, 1, device='meta')
    call = ((coarse,), FocalBias(table, None, (table,)), FocalGeometry(2, 0, 1, 2), 1.0, 0.0)
    reasons = backend.refusals(qkv, *call)
    return [reason for reason in reasons if '2147483648' in reason]


@pytest.mark.parametrize(
    ('layout', 'fitting'),
    [
        (lambda x: x, 1364),  # 1364 * 2**14 * 96 is just below 2**31
        (lambda x: x.mT.contiguous().mT, 1364),  # is made contiguous
        (lambda x: torch.empty(1, *x.shape[1:3], 192, device='meta')[..., :96], 682),
    ],
)
def test_images_whose_offsets_need_more_than_32_bits(
    layout: Callable[[Tensor], Tensor], fitting: int
) -> None:
    assert size_refusals(fitting, layout) == []
    (reason,) = size_refusals(fitting + 2, layout)
    assert f'{fitting + 2}x16384' in reason and '96 channels' in reason


def test_needs_a_gpu_and_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = FocalGeometry(2)
    monkeypatch.setattr(backend, 'INTERPRETED', False)
    monkeypatch.setattr(backend, 'INSTALLED', False)
    with pytest.raises(ValueError, match=r'GPUs only, not on cpu .*; Triton is not installed'):
        call(make_inputs(geometry, (1, 1)), geometry, 'triton')


# Compiles what a call would start, without starting it; prints the shared memory of each kernel.
COMPILE = """
import sys
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type
from mmfocal.ops.focal_attention.impl.triton import function, kernels

dtype, head_dim = getattr(torch, sys.argv[1]), int(sys.argv[2])
capability, place = map(int, sys.argv[3:])

def compile_only(kernel, grid, like, *args, **constants):
    if hasattr(kernel, 'configs'):
        kernel.nargs = dict(zip(kernel.arg_names, args))
        configs = kernel.prune_configs(constants)
        largest = max(config.kwargs['BLOCK_K'] for config in configs)
        assert largest == (32 if like.dtype == torch.float32 else 64)
        constants.update(configs[place].all_kwargs())
        assert place == 0 or constants['BLOCK_K'] == largest
        kernel = kernel.fn
    options = {n: constants.pop(n, 1) for n in ('num_warps', 'num_stages', 'num_ctas')}
    names = kernel.arg_names
    values = dict(zip(names, args), **constants)
    assert set(values) == set(names), set(values) ^ set(names)
    signature = {
        n: 'constexpr' if n in constants else mangle_type(v) if hasattr(v, 'dtype') else 'i32'
        for n, v in values.items()
    }
    positions = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature={n: signature[n] for n in names}, constexprs=positions)
    compiled = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)
    assert compiled.asm['cubin']
    print(kernel.__name__, compiled.metadata.shared)

function._launch = compile_only
geometry = [7, 3, 3, 2, 3]
qkv = torch.zeros(1, 14, 14, 3 * head_dim, dtype=dtype)
coarse = torch.zeros(1, 4, 2 * head_dim, dtype=dtype)
bias = torch.zeros(1, 49, 169 + 9)
out, log_sum = function.attend(qkv, coarse, bias, geometry, 1.0)
call = (out, qkv, coarse, bias, out, log_sum, geometry, 1.0)
function.attend_backward(*call)
function._window_gradients = lambda *_: bias.clone()  # compiled already
function._query_gradient = lambda *_: log_sum
torch.use_deterministic_algorithms(True)
function.attend_backward(*call)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='Triton brings compilers for Linux only')
@pytest.mark.parametrize(
    ('dtype', 'head_dim', 'capability', 'place', 'kib'),
    [
        ('float16', 32, 80, 0, 64),
        ('float32', 8, 80, 0, 64),
        ('bfloat16', 32, 90, 0, 64),
        ('bfloat16', 49, 90, 0, 64),
        ('bfloat16', 128, 90, 0, 64),
        ('bfloat16', 32, 90, -1, 227),
        ('bfloat16', 128, 90, -1, 227),
    ],
)
def test_compiles_for_gpus(
    dtype: str, head_dim: int, capability: int, place: int, kib: int
) -> None:
    """No GPU is needed to compile.

    The smallest configuration, at ``place`` 0, has to fit every GPU, the largest one, at -1, what
    the GPU of the capability has.
    """
    env = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    result = subprocess.run(
        [sys.executable, '-c', COMPILE, *map(str, (dtype, head_dim, capability, place))],
        env=env,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    shared = [line.split() for line in result.stdout.splitlines()]
    assert [name for name, _ in shared] == [
        'forward_kernel',
        'query_gradient_kernel',
        *['window_gradient_kernel'] * 2,
        *['key_gradient_kernel'] * 2,
    ]
    assert max(int(size) for _, size in shared) <= kib * 1024
