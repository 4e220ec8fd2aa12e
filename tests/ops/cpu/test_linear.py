# SPDX-License-Identifier: Apache-2.0
"""The linear layer by oneDNN against PyTorch's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmfocal.ops.cpu import linear as module
from mmfocal.ops.cpu.linear import linear

SHAPES = {'tokens': (2, 2100, 5), 'matrix': (4100, 5), 'map': (2, 30, 71, 5)}


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> list:
    """Grows with each convolution."""
    calls, original = [], F.conv2d
    monkeypatch.setattr(F, 'conv2d', lambda *args: calls.append(args) or original(*args))
    return calls


@pytest.fixture
def two_threads() -> Iterator[None]:
    if not torch.backends.mkldnn.is_available():
        pytest.skip('PyTorch was built without oneDNN')
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def onednn(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MMFOCAL_CPU_LINEAR', 'onednn')


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Input, weight and bias of a layer with 5 inputs and 8 outputs."""
    tensors = (torch.randn(size) for size in (shape, (8, 5), (8,)))
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def run(function, tensors: list[Tensor]) -> list[Tensor]:
    """Output and all gradients."""
    out = function(*tensors)
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, tensors, seed.to(out.dtype))]


@pytest.mark.parametrize('count', [2, 3], ids=['without bias', 'with bias'])
@pytest.mark.parametrize('shape', SHAPES)
def test_equals_linear(shape: str, count: int, convolutions: list, onednn: None) -> None:
    tensors = make(SHAPES[shape])[:count]
    ours = run(linear, tensors)
    assert len(convolutions) == 1
    truth = run(F.linear, [t.detach().double().requires_grad_() for t in tensors])
    # A sum of n terms errs by n eps; the output sums inputs, its gradients outputs or tokens.
    tokens = tensors[0][..., 0].numel()
    for terms, value, exact in zip((6, 8, tokens, tokens), ours, truth):
        assert value.shape == exact.shape
        bound = terms * torch.finfo(torch.float32).eps * exact.abs().max()
        assert (value - exact).abs().max() <= bound


def test_pytorch_takes_onednn(onednn: None) -> None:
    """PyTorch uses oneDNN for larger inputs and several threads, which is not documented."""
    tensors = make(SHAPES['matrix'])
    with torch.profiler.profile() as profile:
        linear(*tensors)
    assert 'aten::mkldnn_convolution' in {event.key for event in profile.key_averages()}


def test_small_inputs_and_single_threads(convolutions: list, onednn: None) -> None:
    linear(*make((4096, 5)))
    torch.set_num_threads(1)
    linear(*make(SHAPES['matrix']))
    assert not convolutions


def test_strided_input(convolutions: list, onednn: None) -> None:
    x, weight, bias = make((5, 70, 60))
    ours = linear(x.permute(1, 2, 0), weight, bias)
    assert len(convolutions) == 1
    torch.testing.assert_close(ours, F.linear(x.permute(1, 2, 0), weight, bias))


def test_copies_nothing(onednn: None) -> None:
    """Layouts are views: the output has the layout that the next layer expects."""
    x, weight, bias = make(SHAPES['tokens'])
    assert linear(x, weight, bias).is_contiguous()


def test_second_derivative(onednn: None) -> None:
    results = []
    tensors = make(SHAPES['tokens'])
    for function in (linear, F.linear):
        out = function(*tensors).square().sum()
        grads = torch.autograd.grad(out, tensors, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), tensors))
    for ours, plain in zip(*results, strict=True):
        bound = 4200 * torch.finfo(torch.float32).eps * plain.abs().max()  # sums over the tokens
        assert (ours - plain).abs().max() <= bound


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_fp32_only(dtype: torch.dtype, convolutions: list, onednn: None) -> None:
    tensors = make(SHAPES['tokens'], dtype)
    assert torch.equal(linear(*tensors), F.linear(*tensors))
    assert not convolutions


def test_where_it_stays_linear(convolutions: list, onednn: None) -> None:
    tensors = make(SHAPES['tokens'])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert linear(*tensors).dtype == torch.bfloat16
    assert linear(*(t.to('meta') for t in tensors)).shape == (2, 2100, 8)
    assert linear(tensors[0][:0], *tensors[1:]).shape == (0, 2100, 8)
    with FlopCounterMode(display=False) as counter:
        linear(*tensors)
    assert counter.get_total_flops() == 2 * 2 * 2100 * 5 * 8
    compiled = torch.compile(linear, fullgraph=True, backend='eager')
    torch.testing.assert_close(compiled(*tensors), F.linear(*tensors))
    assert not convolutions


def cpu_info(tmp_path: Path, vendor: str, flag: str) -> Path:
    path = tmp_path / 'cpuinfo'
    path.write_text(f'processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flag} avx512vl\n')
    return path


@pytest.mark.parametrize(
    ('vendor', 'flag', 'expected'),
    [
        ('AuthenticAMD', 'avx512f', 1),
        ('AuthenticAMD', 'avx2', 0),
        ('GenuineIntel', 'avx512f', 0),
        (None, '', 0),
    ],
)
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason='PyTorch was built without MKL')
def test_automatic_choice(
    vendor: str | None,
    flag: str,
    expected: int,
    tmp_path: Path,
    convolutions: list,
    two_threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = cpu_info(tmp_path, vendor, flag) if vendor else tmp_path / 'absent'
    monkeypatch.setattr(module, 'CPU_INFO', info)
    module._onednn_is_faster.cache_clear()
    linear(*make(SHAPES['tokens']))
    module._onednn_is_faster.cache_clear()
    assert len(convolutions) == expected


def test_mkl_on_request(
    convolutions: list, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, '_onednn_is_faster', lambda: True)
    monkeypatch.setenv('MMFOCAL_CPU_LINEAR', 'mkl')
    linear(*make(SHAPES['tokens']))
    assert not convolutions


def test_unknown_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MMFOCAL_CPU_LINEAR', 'blas')
    with pytest.raises(ValueError, match=r"MMFOCAL_CPU_LINEAR must be one of auto.*got 'blas'"):
        linear(*make(SHAPES['tokens']))
