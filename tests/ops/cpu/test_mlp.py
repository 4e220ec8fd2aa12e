# SPDX-License-Identifier: Apache-2.0
"""The chunked MLP against PyTorch's own layers."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmfocal.ops.cpu import mlp as module
from mmfocal.ops.cpu.mlp import MlpParameters, is_worthwhile, norm_mlp

DIM, HIDDEN, SHAPE = 12, 40, (2, 5, 7, 12)
CHUNKS = {'one token': 1, 'three tokens': 3 * HIDDEN * 8, 'everything': 2**30}


def make_layers(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = (nn.LayerNorm(DIM), nn.Linear(DIM, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, DIM))
    layers = nn.Sequential(*layers).double()
    for parameter in layers.parameters():
        nn.init.normal_(parameter)
    return layers.to(dtype)


def make_input(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64).to(dtype)


def call(layers: nn.Sequential, x: Tensor, chunked: bool = True) -> Tensor:
    return (
        norm_mlp(x, MlpParameters(*layers.parameters()), layers[0].eps) if chunked else layers(x)
    )


def run(layers: nn.Sequential, x: Tensor, chunked: bool) -> dict[str, Tensor]:
    """Output and the gradient of the input and every parameter, by name."""
    x = x.detach().requires_grad_()
    out = call(layers, x, chunked)
    grads = torch.autograd.grad(out, [x, *layers.parameters()], make_input(1).to(out.dtype))
    names = ['d_x', *(f'd_{name}' for name, _ in layers.named_parameters())]
    return {'out': out.detach(), **dict(zip(names, grads, strict=True))}


def check_close(ours: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    """Worst-case rounding of a sum of n terms is n eps; the longest are over tokens and hidden."""
    terms = truth['out'].numel() * HIDDEN
    for name, value in truth.items():
        bound = terms * torch.finfo(torch.float64).eps * value.abs().max()
        assert (ours[name] - value).abs().max() <= bound, name


def check_rounding(dtype: torch.dtype, factor: int, roundings: int) -> None:
    """The error may be ``factor`` times that of the layers in this dtype, plus ``roundings``."""
    layers, x = make_layers(dtype=dtype), make_input(dtype=dtype)
    plain, ours = run(layers, x, False), run(layers, x, True)
    truth = run(layers.double(), x.double(), False)
    for name, value in truth.items():
        rounding = torch.finfo(dtype).eps * value.abs().max()
        bound = factor * (plain[name] - value).abs().max() + roundings * rounding
        assert (ours[name] - value).abs().max() <= bound, name


@pytest.mark.parametrize('chunk', CHUNKS)
def test_equals_layers_fp64(chunk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, 'CHUNK_BYTES', CHUNKS[chunk])
    layers, x = make_layers(), make_input()
    check_close(run(layers, x, True), run(layers, x, False))


@pytest.mark.parametrize('chunk', CHUNKS)
def test_rounds_as_well_as_layers_fp32(chunk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32, the error may be twice that of the layers, plus four roundings."""
    monkeypatch.setattr(module, 'CHUNK_BYTES', CHUNKS[chunk])
    check_rounding(torch.float32, factor=2, roundings=4)


@pytest.mark.parametrize('chunk', ['one token', 'three tokens'])
def test_rounds_as_well_as_layers_bf16(chunk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of chunks are summed in fp32, so the sum is rounded once, as in the layers."""
    monkeypatch.setattr(module, 'CHUNK_BYTES', CHUNKS[chunk])
    check_rounding(torch.bfloat16, factor=1, roundings=1)


@pytest.mark.parametrize('input_dtype', [torch.float32, torch.bfloat16])
def test_autocast(input_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients have the roundings of the layers; only the order of sums differs."""
    monkeypatch.setattr(module, 'CHUNK_BYTES', 2**12)
    layers, x = make_layers(dtype=torch.float32), make_input(dtype=input_dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        plain, ours = run(layers, x, False), run(layers, x, True)
    eps = torch.finfo(torch.bfloat16).eps
    for name, value in plain.items():
        assert ours[name].dtype == value.dtype, name
        assert (ours[name] - value).abs().max() <= 4 * eps * value.abs().max(), name


def test_autocast_cache_keeps_gradients() -> None:
    """Layers that follow in the same autocast still train."""
    layers, x = make_layers(dtype=torch.float32), make_input(dtype=torch.float32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        call(layers, x)
        out = layers(x)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in layers.parameters())


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, 'CHUNK_BYTES', 2**12)
    layers, x = make_layers(), make_input()
    with mode():
        out = call(layers, x)
    assert not out.requires_grad
    check_close({'out': out}, {'out': layers(x).detach()})
    check_close(run(layers, x, True), run(layers, x, False))


def test_strided_input_and_gradient() -> None:
    layers, x = make_layers(), make_input()
    strided = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    seed = torch.linspace(0, 1, 7).double()[:, None].expand(SHAPE)
    grads = []
    for value, gradient in ((x, seed.contiguous()), (strided, seed)):
        out = call(layers, value.requires_grad_())
        grads.append([out, *torch.autograd.grad(out, [value, *layers.parameters()], gradient)])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_only_some_inputs_need_gradients() -> None:
    layers, x = make_layers(), make_input()
    truth = run(layers, x, True)
    for name, parameter in layers.named_parameters():
        layers.requires_grad_(False)
        parameter.requires_grad_()
        (grad,) = torch.autograd.grad(call(layers, x), parameter, make_input(1))
        assert torch.equal(grad, truth[f'd_{name}'])
    layers.requires_grad_(False)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(call(layers, x), x, make_input(1))
    assert torch.equal(grad, truth['d_x'])


def test_second_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, 'CHUNK_BYTES', 2**12)
    layers, x = make_layers(), make_input()
    results = []
    for chunked in (True, False):
        leaves = [x.clone().requires_grad_(), *layers.parameters()]
        out = call(layers, leaves[0].sin(), chunked)
        grads = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        total = sum(grad.square().sum() for grad in grads)
        results.append(torch.autograd.grad(total, leaves))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_saves_its_inputs_only() -> None:
    layers, x = make_layers(), make_input().requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        call(layers, x)
    inputs = {t.data_ptr() for t in (x, *layers.parameters())}
    assert {t.data_ptr() for t in saved} == inputs


def test_changed_parameters_are_noticed() -> None:
    layers, x = make_layers(), make_input()
    out = call(layers, x).sum()
    with torch.no_grad():
        layers[1].weight.add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        out.backward()


def test_checkpointing() -> None:
    """Two layers, the second recomputed while the first waits."""
    results = []
    for recompute in (False, True):
        first, second, x = make_layers(0), make_layers(1), make_input().requires_grad_()
        out = call(first, x)
        if recompute:
            out = checkpoint(call, second, out, use_reentrant=False)
        else:
            out = call(second, out)
        leaves = [x, *first.parameters(), *second.parameters()]
        results.append(torch.autograd.grad(out.square().sum(), leaves))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, 'CHUNK_BYTES', 2**12)
    models = [make_layers(seed) for seed in range(6)]
    results: dict[int, dict[str, Tensor]] = {}
    threads = [
        threading.Thread(
            target=lambda i=i: results.update({i: run(models[i], make_input(i), True)})
        )
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, layers in enumerate(models):
        alone = run(layers, make_input(seed), True)
        assert all(torch.equal(results[seed][name], value) for name, value in alone.items())


def test_is_worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, x = make_layers(), make_input()
    parameters = MlpParameters(*layers.parameters())
    hidden = 5 * 7 * HIDDEN * 8  # of one image
    monkeypatch.setattr(module, 'TRAINING_BYTES', hidden)
    assert is_worthwhile(x, parameters)
    monkeypatch.setattr(module, 'TRAINING_BYTES', hidden + 1)
    assert not is_worthwhile(x, parameters)
    with torch.no_grad():
        assert is_worthwhile(x, parameters)
        assert not is_worthwhile(x[:0], parameters)
        assert not is_worthwhile(x.to('meta'), parameters)
    assert is_worthwhile(x, MlpParameters(*(p.detach() for p in parameters)))


def test_backward_computes_no_output(count_calls: Callable) -> None:
    layers, x = make_layers(), make_input().requires_grad_()
    out = call(layers, x)
    outputs = count_calls(module, 'mlp')
    hidden = count_calls(module, '_hidden')
    out.sum().backward()
    assert (len(outputs), len(hidden)) == (0, 1)
