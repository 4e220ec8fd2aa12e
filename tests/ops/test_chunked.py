# SPDX-License-Identifier: Apache-2.0
"""Properties of the CPU operators alone: their memory, and the inputs that they do not support.

Their results are tested in ``test_focal_attention``.
"""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mmfocal.ops.cpu import memory
from mmfocal.ops.focal_attention import FocalGeometry, FocalInputs, focal_attention
from mmfocal.ops.focal_attention import bias as bias_module
from mmfocal.ops.focal_attention.impl import chunked
from tests.helpers.attention import CASES, call, make_inputs, run, to_bias, to_tokens

EPS = torch.finfo(torch.float64).eps


def check_equal(ours: dict[str, Tensor], truth: dict[str, Tensor], terms: int) -> None:
    """Compare with the worst rounding of sums of so many terms."""
    assert ours.keys() == truth.keys()
    for name, value in truth.items():
        error, bound = (ours[name] - value).abs().max(), terms * EPS * value.abs().max()
        assert error <= bound, f'{name}: error {error:.1e}, bound {bound:.1e}'


def compare(case: str, windows: tuple[int, int] | None = None, **shape: int) -> None:
    geometry, some_windows, shift = CASES[case]
    inputs = make_inputs(geometry, windows or some_windows, **shape)
    truth = run(inputs, geometry, 'reference', torch.float64, shift=shift)
    ours = run(inputs, geometry, 'chunked', torch.float64, shift=shift)
    check_equal(ours, truth, inputs['qkv'][..., 0].numel() * geometry.window_size**2)


@pytest.mark.parametrize('tile_bytes', [1, 2**16, 2**18, 2**21])
@pytest.mark.parametrize('case', ['detection', 'shift', 'three levels, even window'])
def test_any_tiling(case: str, tile_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From single windows, over parts of rows, rows and heads, to several images at a time."""
    monkeypatch.setattr(chunked, 'TILE_BYTES', tile_bytes)
    compare(case)


def test_tiles_cover_every_window_once(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry, windows, _shift = CASES['detection']
    inputs = make_inputs(geometry, windows, heads=4)
    bias = torch.zeros(4, 49, 169 + 225)
    tilings = set()
    for kib in (1, 200, 800, 3000, 10000):
        monkeypatch.setattr(chunked, 'TILE_BYTES', kib * 2**10)
        tokens = to_tokens(inputs, geometry)
        attention = chunked.ChunkedAttention(
            tokens, bias, chunked.Call((21, 35), geometry, 1.0, 0)
        )
        count = torch.zeros(2, 4, *windows)
        tiles = [tile for _, _, tiles in attention.planes_and_tiles() for tile in tiles]
        for tile in tiles:
            count[tile] += 1
        assert (count == 1).all()
        tilings.add(len(tiles))
    assert len(tilings) == 5


@pytest.mark.parametrize('lowered', [0, 30, 90, 150])
@pytest.mark.parametrize('case', ['detection', 'shift'])
def test_masked_keys_count_unless_negligible(case: str, lowered: float) -> None:
    """Keys outside the map have logits of about -100, which may exceed those on the map."""
    geometry, windows, shift = CASES[case]
    inputs = make_inputs(geometry, windows)
    query = (lowered / (0.4 * 5)) ** 0.5
    inputs['qkv'][..., :10] = query  # logits are bias - lowered
    inputs['qkv'][..., 10:20] = inputs['coarse_kv.0'][..., :10] = -query
    truth = run(inputs, geometry, 'reference', torch.float64, shift=shift)
    ours = run(inputs, geometry, 'chunked', torch.float64, shift=shift)
    check_equal(ours, truth, inputs['qkv'][..., 0].numel() * geometry.window_size**2)


def test_no_denormal_weights() -> None:
    """Denormal weights would take several times as long to compute on some CPUs."""
    geometry, windows, _ = CASES['detection']
    inputs = {name: value.float() for name, value in make_inputs(geometry, windows).items()}
    tables = to_bias(inputs, geometry)
    bias = bias_module.combined_bias(tables, geometry)
    tokens = to_tokens(inputs, geometry)
    attention = chunked.ChunkedAttention(tokens, bias, chunked.Call((21, 35), geometry, 0.4, 0))
    for images, heads, tiles in attention.planes_and_tiles():
        maps = attention.windows(attention.load_maps(images, heads))
        for tile in tiles:
            q = attention.load_windows('q', attention.maps.q, tile)
            weights = attention.weights(q, attention.load_keys(maps, tile)[0], tile)
            assert (weights == 0).any()
            assert weights[weights > 0].min() > torch.finfo(torch.float32).tiny


def test_large_map_and_odd_head_dim() -> None:
    compare('detection', windows=(6, 11), heads=3, dim=7)


@pytest.mark.parametrize('layout', ['channels first', 'cropped', 'expanded'])
def test_strided_input(layout: str) -> None:
    geometry, windows, _ = CASES['detection']
    inputs = make_inputs(geometry, windows)
    tokens, bias = to_tokens(inputs, geometry), to_bias(inputs, geometry)
    strided = {
        'channels first': lambda: tokens.transpose(1, 2).contiguous().transpose(1, 2),
        'cropped': lambda: torch.nn.functional.pad(tokens, (1, 2, 3, 4))[:, 3:-4, 1:-2],
        'expanded': lambda: tokens[:1].expand(2, -1, -1),
    }[layout]()
    assert not strided.is_contiguous()
    outs = [
        focal_attention(FocalInputs(qkv, (21, 35), bias, geometry, 1.0), 'chunked')
        for qkv in (strided, strided.contiguous())
    ]
    assert torch.equal(*outs)


def test_strided_gradient() -> None:
    geometry, windows, _shift = CASES['detection']
    grads = []
    for make in (torch.Tensor.contiguous, lambda x: x):
        inputs = {k: v.requires_grad_() for k, v in make_inputs(geometry, windows).items()}
        out = call(inputs, geometry, 'chunked')
        out.backward(make(torch.linspace(0, 1, 21).double()[:, None, None].expand(out.shape)))
        grads.append([value.grad for value in inputs.values()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_share_memory(mode: Callable) -> None:
    """Scratch memory made in any mode serves training afterwards."""
    geometry, windows, _shift = CASES['detection']
    inputs = make_inputs(geometry, windows)
    expected = call(inputs, geometry, 'reference')
    memory._memory.blocks.clear()
    with mode():
        out = call(inputs, geometry, 'chunked')
    assert not out.requires_grad
    torch.testing.assert_close(out, expected)
    compare('detection')


def test_outputs_survive_the_next_call() -> None:
    geometry, windows, _shift = CASES['detection']
    inputs = make_inputs(geometry, windows)
    first = call(inputs, geometry, 'chunked')
    kept = first.clone()
    call({k: 2 * v for k, v in inputs.items()}, geometry, 'chunked')
    assert torch.equal(first, kept)


def test_only_some_inputs_need_gradients() -> None:
    geometry, windows, _shift = CASES['detection']
    truth = run(make_inputs(geometry, windows), geometry, 'chunked', torch.float64)
    for name in ('qkv', 'coarse_kv.0', 'neighbors', 'coarse.0'):
        inputs = make_inputs(geometry, windows)
        leaf = inputs[name].requires_grad_()
        out = call(inputs, geometry, 'chunked')
        seed = torch.randn(
            out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        out.backward(seed)
        assert torch.equal(leaf.grad, truth[f'd_{name}'])


def test_saves_maps_only() -> None:
    geometry, windows, _shift = CASES['detection']
    inputs = {k: v.requires_grad_() for k, v in make_inputs(geometry, windows).items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        call(inputs, geometry, 'chunked')
    logits = 2 * 2 * 15 * 49 * 394  # images, heads, windows, queries, keys
    maps = sum(v.numel() for v in inputs.values())
    storages = {x.untyped_storage().data_ptr(): x.numel() for x in saved}
    assert sum(storages.values()) < 2 * maps + 5 * 2 * 49 * 394 < logits


def test_interleaved_calls_and_checkpointing() -> None:
    """Recomputations of different geometries in a backward pass do not disturb each other."""

    def twice(impl: str, recompute: bool) -> list[Tensor]:
        grads, total = [], 0
        for case in ('detection', 'shift'):
            geometry, windows, shift = CASES[case]
            leaves = {k: v.requires_grad_() for k, v in make_inputs(geometry, windows).items()}
            grads.append(leaves)

            def attend(qkv, leaves=leaves, geometry=geometry, shift=shift):
                return call(leaves | {'qkv': qkv}, geometry, impl, shift=shift)

            qkv = leaves['qkv'].sin()
            out = checkpoint(attend, qkv, use_reentrant=False) if recompute else attend(qkv)
            total = total + out.square().sum()
        total.backward()
        return [value.grad for leaves in grads for value in leaves.values()]

    for ours, plain in zip(twice('chunked', True), twice('chunked', False), strict=True):
        assert torch.equal(ours, plain)
    for ours, plain in zip(twice('chunked', True), twice('reference', False), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_threads_do_not_share_memory() -> None:
    jobs = [('detection', 2), ('shift', 3), ('four levels', 1), ('detection', 1)] * 2
    results: dict[int, dict[str, Tensor]] = {}

    def work(index: int) -> dict[str, Tensor]:
        case, heads = jobs[index]
        geometry, windows, shift = CASES[case]
        inputs = make_inputs(geometry, windows, heads=heads)
        return run(inputs, geometry, 'chunked', torch.float64, shift=shift)

    threads = [
        threading.Thread(target=lambda i=i: results.update({i: work(i)})) for i in range(len(jobs))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(len(jobs)):
        alone = work(index)
        assert all(torch.equal(results[index][name], value) for name, value in alone.items())


def test_scratch_memory_is_kept_and_grows() -> None:
    like = torch.empty(0)
    small = memory.scratch('test', (2, 3), like)
    assert memory.scratch('test', (3, 2), like).data_ptr() == small.data_ptr()
    assert memory.scratch('test', (2, 3), like.double()).dtype == torch.float64
    assert memory.scratch('another test', (2, 3), like).data_ptr() != small.data_ptr()
    grown = memory.scratch('test', (20, 3), like)
    assert grown.shape == (20, 3)
    assert memory.scratch('test', (20, 3), like).data_ptr() == grown.data_ptr()
    assert memory.scratch('test', (2, 3), like).data_ptr() == grown.data_ptr()


def test_bfloat16_autocast() -> None:
    """Inputs and output in bf16, arithmetic in fp32: exact up to rounding the output."""
    geometry, windows, _shift = CASES['detection']
    inputs = {k: v.float() for k, v in make_inputs(geometry, windows).items()}
    inputs |= {k: v.bfloat16() for k, v in inputs.items() if 'kv' in k}
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = call(leaves, geometry, 'chunked')
        out.float().square().sum().backward()
    exact = {k: v.double().requires_grad_() for k, v in inputs.items()}
    truth = call(exact, geometry, 'reference')
    truth.backward(2 * out.detach().double())
    eps = torch.finfo(torch.bfloat16).eps
    assert out.dtype == torch.bfloat16
    assert (out - truth).abs().max() <= eps / 2 * truth.abs().max() * (1 + 1e-3)
    for name, leaf in leaves.items():
        scale = exact[name].grad.abs().max()
        # The incoming gradient was rounded to bf16, and so is that of a bf16 input.
        assert (leaf.grad - exact[name].grad).abs().max() <= 2 * eps * scale, name


def test_second_derivative_is_unsupported() -> None:
    geometry, windows, _shift = CASES['window only']
    inputs = {k: v.requires_grad_() for k, v in make_inputs(geometry, windows).items()}
    out = call(inputs, geometry, 'chunked').sum()
    with pytest.raises(RuntimeError, match=r"second derivatives .* use attn_impl='sdpa'"):
        torch.autograd.grad(out, inputs['qkv'], create_graph=True)


def under_fake_tensors(inputs: dict[str, Tensor], geometry: FocalGeometry, impl: str) -> None:
    mode = torch._subclasses.FakeTensorMode()
    with mode:
        call({k: mode.from_tensor(v) for k, v in inputs.items()}, geometry, impl)


def under_torch_func(inputs: dict[str, Tensor], geometry: FocalGeometry, impl: str) -> None:
    torch.func.grad(lambda qkv: call(inputs | {'qkv': qkv}, geometry, impl).sum())(inputs['qkv'])


def under_tracing(inputs: dict[str, Tensor], geometry: FocalGeometry, impl: str) -> None:
    torch.jit.trace(
        lambda qkv: call(inputs | {'qkv': qkv}, geometry, impl), inputs['qkv'], check_trace=False
    )


def on_meta(inputs: dict[str, Tensor], geometry: FocalGeometry, impl: str) -> None:
    call({k: v.to('meta') for k, v in inputs.items()}, geometry, impl)


def under_a_flop_counter(inputs: dict[str, Tensor], geometry: FocalGeometry, impl: str) -> None:
    # Without gradients, PyTorch's attention would run a kernel whose products are not counted.
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    with FlopCounterMode(display=False) as counter:
        call(leaves, geometry, impl)
    # 2 images, 2 heads of 5 channels, 2 x 3 windows of 49 queries and keys; two products
    assert counter.get_total_flops() == 2 * 2 * 2 * 2 * 5 * 6 * 49**2


def with_dropout(inputs: dict[str, Tensor], geometry: FocalGeometry, impl: str) -> None:
    call(inputs, geometry, impl, dropout_p=0.1)


@pytest.mark.parametrize(
    ('situation', 'reason'),
    [
        (under_fake_tensors, r'tensor subclasses \(FakeTensor\) are not supported'),
        (under_torch_func, 'torch.func and forward-mode differentiation are not supported'),
        (under_tracing, 'compiling, exporting and tracing are not supported'),
        (on_meta, 'device meta is not supported, only cpu'),
        (under_a_flop_counter, 'dispatch modes, such as FLOP counters, are not supported'),
        (with_dropout, 'attention dropout is not supported'),
    ],
)
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_unsupported(situation: Callable, reason: str) -> None:
    geometry, windows, _shift = CASES['window only']
    inputs = make_inputs(geometry, windows)
    with pytest.raises(ValueError, match=f"'chunked' cannot run here: .*{reason}"):
        situation(inputs, geometry, 'chunked')
    situation(inputs, geometry, 'auto')


@pytest.mark.parametrize('order', [(under_fake_tensors, call), (call, under_fake_tensors)])
def test_constants_of_modes_are_not_shared(
    order: tuple[Callable, Callable], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ordinary calls do not use the constants of a mode, and vice versa."""
    monkeypatch.setattr(bias_module, '_INDICES', {})
    geometry, windows, _shift = CASES['detection']
    inputs = make_inputs(geometry, windows)
    truth = call(inputs, geometry, 'reference')
    results = {run_once: run_once(inputs, geometry, 'sdpa') for run_once in order}
    torch.testing.assert_close(results[call], truth)


def test_default_device() -> None:
    """Calls create tensors on the device of their inputs."""
    geometry, windows, shift = CASES['shift']
    inputs = make_inputs(geometry, windows)
    truth = call(inputs, geometry, 'reference', shift=shift)
    with torch.device('meta'):
        out = call(inputs, geometry, 'chunked', shift=shift)
    torch.testing.assert_close(out, truth)


def test_every_reason_is_listed() -> None:
    geometry, windows, _shift = CASES['window only']
    inputs = {k: v.to('meta') for k, v in make_inputs(geometry, windows).items()}
    with pytest.raises(ValueError, match='only cpu; attention dropout is not supported'):
        call(inputs, geometry, 'chunked', dropout_p=0.5)
