# SPDX-License-Identifier: Apache-2.0
"""Blocks on a CPU against the same blocks layer by layer."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmfocal.models.fast_path import call_block
from mmfocal.models.focal_transformer import FocalBlock
from mmfocal.ops.cpu import block as block_module
from mmfocal.ops.cpu import mlp as mlp_module
from mmfocal.ops.focal_attention import FocalGeometry

DIM, HEADS = 12, 3
DETECTION = FocalGeometry(7, expand_size=3, focal_window=9, focal_level=2)
BLOCKS = {
    'detection': dict(geometry=DETECTION),
    'shift': dict(geometry=FocalGeometry(7, 3, 5, 2), shift_size=3),
    'three levels': dict(geometry=FocalGeometry(8, 2, 3, 3)),
    'window only': dict(geometry=FocalGeometry(7)),
    'residual scales': dict(geometry=DETECTION, layer_scale_init=0.5),
    'no bias of queries': dict(geometry=DETECTION, qkv_bias=False),
    'queries scaled': dict(geometry=DETECTION, qk_scale=0.7),
}
SIZES = [(2, 14, 21), (1, 15, 33), (3, 8, 5), (1, 1, 1)]


def make_block(dtype: torch.dtype = torch.float64, **cfg) -> FocalBlock:
    torch.manual_seed(0)
    block = FocalBlock(DIM, HEADS, **{'geometry': DETECTION, **cfg}).to(dtype)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block.eval()


def make_map(size: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*size, DIM, generator=generator, dtype=torch.float64).to(dtype)


@pytest.fixture
def chunked_calls(count_calls: Callable) -> list:
    """Grows with each block that runs a few tokens or heads at a time."""
    return count_calls(block_module, '_attend')


@pytest.fixture
def fast_training(count_calls: Callable) -> list:
    """Grows with each block that trains by the CPU's operators."""
    return count_calls(block_module, 'run_block')


def bound(truth: Tensor, terms: int) -> Tensor:
    """Worst-case rounding of a sum of n terms is n eps; eight sums follow each other."""
    return 8 * terms * torch.finfo(truth.dtype).eps * truth.abs().max()


def check(block: FocalBlock, x: Tensor) -> None:
    with torch.no_grad():
        ours, truth = call_block(block, x), block(x)
    assert (ours - truth).abs().max() <= bound(truth, max(4 * DIM, 49 + 132 + 81))


def gradients(block: FocalBlock, x: Tensor, call: Callable) -> dict[str, Tensor]:
    """Output and all gradients by name."""
    x = x.detach().requires_grad_()
    out = call(x)
    names, parameters = zip(*block.named_parameters(), strict=True)
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    grads = torch.autograd.grad(out, [x, *parameters], seed.to(out.dtype))
    return dict(zip(('out', 'x', *names), (out.detach(), *grads), strict=True))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name', BLOCKS)
def test_equals_the_layers(
    name: str, size: tuple[int, int, int], dtype: torch.dtype, chunked_calls: list
) -> None:
    check(make_block(dtype, **BLOCKS[name]), make_map(size, dtype))
    assert len(chunked_calls) == 1


@pytest.mark.parametrize('training_bytes', [0, 2**30])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('name', BLOCKS)
def test_trains_as_the_layers(
    name: str,
    dtype: torch.dtype,
    training_bytes: int,
    fast_training: list,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mlp_module, 'TRAINING_BYTES', training_bytes)
    block, x = make_block(dtype, **BLOCKS[name]).train(), make_map((2, 15, 33), dtype)
    truth = gradients(block, x, block)
    assert not fast_training
    ours = gradients(block, x, lambda value: call_block(block, value))
    assert len(fast_training) == 1
    for key, value in truth.items():
        assert (ours[key] - value).abs().max() <= bound(value, 2 * 21 * 35 * 49), key


@pytest.mark.parametrize(
    'qkv_bytes', [1, 3 * 21 * 35 * DIM * 8 * 2 // 3, 2**30], ids=['head', 'two heads', 'all']
)
@pytest.mark.parametrize('chunk_bytes', [1, 5 * 4 * DIM * 8, 2**30], ids=['token', 'five', 'all'])
def test_any_chunks(
    qkv_bytes: int, chunk_bytes: int, chunked_calls: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_module, 'QKV_BYTES', qkv_bytes)
    monkeypatch.setattr(mlp_module, 'CHUNK_BYTES', chunk_bytes)
    check(make_block(), make_map((2, 15, 33)))
    assert len(chunked_calls) == 1


def test_heads_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_module, 'QKV_BYTES', 3 * 21 * 35 * DIM * 8 * 2 // 3)
    tokens = torch.empty(2, 21 * 35, DIM, dtype=torch.float64)
    spans = block_module._images_and_heads(tokens, DIM, HEADS)
    heads = {(part.start, part.stop) for _, part in spans}
    assert heads == {(0, 1), (1, 3)}


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, chunked_calls: list) -> None:
    """As exact as layer by layer: the bias tables are combined, and keys weighted, in fp32."""
    block, x = make_block(torch.float32), make_map((2, 14, 21), torch.float32)
    truth = block(x)
    block, x = block.to(dtype), x.to(dtype)
    ours, plain = call_block(block, x), block(x)
    assert len(chunked_calls) == 1 and ours.dtype == dtype
    assert (ours - truth).abs().mean() <= 1.1 * (plain - truth).abs().mean()


@torch.no_grad()
def test_input_and_former_outputs_stay(chunked_calls: list) -> None:
    block, x = make_block(), make_map((2, 15, 33))
    before, first = x.clone(), call_block(block, x)
    kept = first.clone()
    call_block(block, 2 * x)
    assert torch.equal(x, before) and torch.equal(first, kept)
    assert len(chunked_calls) == 2


@torch.no_grad()
def test_transposed_input(chunked_calls: list) -> None:
    block, x = make_block(), make_map((2, 15, 33))
    transposed = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(call_block(block, transposed), call_block(block, x))
    assert len(chunked_calls) == 2


def test_frozen_blocks(chunked_calls: list) -> None:
    block, x = make_block().requires_grad_(False), make_map((2, 15, 33))
    with torch.no_grad():
        expected = call_block(block, x)
    assert torch.equal(call_block(block, x), expected) and len(chunked_calls) == 2
    call_block(block, x.requires_grad_())
    assert len(chunked_calls) == 2


def test_training_after_inference_mode(chunked_calls: list) -> None:
    block, x = make_block(), make_map((2, 15, 33))
    with torch.inference_mode():
        first = call_block(block, x)
    call_block(block, x).sum().backward()
    with torch.no_grad():
        assert torch.equal(call_block(block, x), first)
    assert len(chunked_calls) == 2
    assert call_block(block, x[:0]).shape == (0, 15, 33, DIM)


@torch.no_grad()
def test_threads(chunked_calls: list) -> None:
    block, maps = make_block(), [scale * make_map((2, 15, 33)) for scale in range(1, 5)]
    alone = [call_block(block, x) for x in maps]
    together = [None] * len(maps)

    def work(index: int) -> None:
        with torch.no_grad():  # a new thread starts with gradients
            for _ in range(5):
                together[index] = call_block(block, maps[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(maps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, truth in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, truth)
    assert len(chunked_calls) == 6 * len(maps)


@torch.no_grad()
def test_environment_chooses(chunked_calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = make_block(), make_map((2, 15, 33))
    monkeypatch.setenv('MMFOCAL_ATTN_IMPL', 'reference')
    truth = call_block(block, x)
    assert not chunked_calls
    monkeypatch.setenv('MMFOCAL_ATTN_IMPL', 'chunked')
    torch.testing.assert_close(call_block(block, x), truth)
    assert len(chunked_calls) == 1
