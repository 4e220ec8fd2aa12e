# SPDX-License-Identifier: Apache-2.0
"""Blocks without gradients on a CPU against the same blocks layer by layer."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmfocal.models.focal_transformer import FocalBlock
from mmfocal.ops import chunked_block, chunked_mlp
from mmfocal.ops.focal_attention import FocalGeometry

DIM, HEADS = 12, 3
DETECTION = FocalGeometry(7, expand_size=3, focal_window=9, focal_level=2)
BLOCKS = {
    'detection': dict(geometry=DETECTION),
    'shift': dict(geometry=FocalGeometry(7, 3, 5, 2, shift_size=3)),
    'three levels': dict(geometry=FocalGeometry(8, 2, 3, 3)),
    'window only': dict(geometry=FocalGeometry(7)),
    'residual scales': dict(geometry=DETECTION, layer_scale_init=0.5),
    'no bias of queries': dict(geometry=DETECTION, qkv_bias=False),
    'convolution pools': dict(geometry=DETECTION, pool_method='conv'),
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
def lean_calls(count_calls: Callable) -> list:
    """Grows with each block that runs lean."""
    return count_calls(chunked_block, 'attend')


def check(block: FocalBlock, x: Tensor) -> None:
    """Worst-case rounding of a sum of n terms is n eps; eight sums follow each other."""
    with torch.no_grad():
        ours = block(x)
    truth = block(x)  # layer by layer, because autograd records it
    assert truth.requires_grad
    terms = 8 * max(4 * DIM, 49 + 132 + 81)
    assert (ours - truth).abs().max() <= terms * torch.finfo(x.dtype).eps * truth.abs().max()


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name', BLOCKS)
def test_equals_the_layers(
    name: str, size: tuple[int, int, int], dtype: torch.dtype, lean_calls: list
) -> None:
    check(make_block(dtype, **BLOCKS[name]), make_map(size, dtype))
    assert len(lean_calls) == 1


@pytest.mark.parametrize(
    'qkv_bytes', [1, 3 * 21 * 35 * DIM * 8 * 2 // 3, 2**30], ids=['head', 'two heads', 'all']
)
@pytest.mark.parametrize('chunk_bytes', [1, 5 * 4 * DIM * 8, 2**30], ids=['token', 'five', 'all'])
def test_any_chunks(
    qkv_bytes: int, chunk_bytes: int, lean_calls: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_block, 'QKV_BYTES', qkv_bytes)
    monkeypatch.setattr(chunked_mlp, 'CHUNK_BYTES', chunk_bytes)
    check(make_block(), make_map((2, 15, 33)))
    assert len(lean_calls) == 1


def test_heads_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_block, 'QKV_BYTES', 3 * 21 * 35 * DIM * 8 * 2 // 3)
    x = torch.empty(2, 21, 35, DIM, dtype=torch.float64)
    heads = {(part.start, part.stop) for _, part in chunked_block._images_and_heads(x, HEADS)}
    assert heads == {(0, 1), (1, 3)}


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, lean_calls: list) -> None:
    """As exact as layer by layer: the bias tables are merged, and keys weighted, in fp32."""
    block, x = make_block(torch.float32), make_map((2, 14, 21), torch.float32)
    truth = block(x)
    block, x = block.to(dtype), x.to(dtype)
    ours = block(x)
    assert len(lean_calls) == 2 and ours.dtype == dtype
    block.register_forward_pre_hook(lambda *args: None)  # concerns the block as a whole
    block.attn.register_forward_hook(lambda *args: None)
    plain = block(x)
    assert len(lean_calls) == 2
    assert (ours - truth).abs().mean() <= 1.1 * (plain - truth).abs().mean()


@torch.no_grad()
def test_input_and_former_outputs_stay(lean_calls: list) -> None:
    block, x = make_block(), make_map((2, 15, 33))
    before, first = x.clone(), block(x)
    kept = first.clone()
    block(2 * x)
    assert torch.equal(x, before) and torch.equal(first, kept)
    assert len(lean_calls) == 2


@torch.no_grad()
def test_transposed_input(lean_calls: list) -> None:
    block, x = make_block(), make_map((2, 15, 33))
    transposed = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(block(transposed), block(x))
    assert len(lean_calls) == 2


def test_frozen_blocks(lean_calls: list) -> None:
    block, x = make_block().requires_grad_(False), make_map((2, 15, 33))
    with torch.no_grad():
        expected = block(x)
    assert torch.equal(block(x), expected) and len(lean_calls) == 2
    block(x.requires_grad_())
    assert len(lean_calls) == 2


def test_training_after_inference_mode(lean_calls: list) -> None:
    block, x = make_block(), make_map((2, 15, 33))
    with torch.inference_mode():
        first = block(x)
    block(x).sum().backward()
    with torch.no_grad():
        assert torch.equal(block(x), first)
    assert len(lean_calls) == 2
    assert block(x[:0]).shape == (0, 15, 33, DIM)


@torch.no_grad()
def test_threads(lean_calls: list) -> None:
    block, maps = make_block(), [scale * make_map((2, 15, 33)) for scale in range(1, 5)]
    alone = [block(x) for x in maps]
    together = [None] * len(maps)

    def work(index: int) -> None:
        with torch.no_grad():  # a new thread starts with gradients
            for _ in range(5):
                together[index] = block(maps[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(maps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, truth in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, truth)
    assert len(lean_calls) == 6 * len(maps)


LAYERS = ('norm1', 'attn', 'attn.qkv', 'attn.proj', 'attn.proj_drop', 'drop_path', 'norm2', 'mlp')


@torch.no_grad()
@pytest.mark.parametrize('name', [*LAYERS, 'mlp.fc1', 'mlp.act', 'pool_layers.0'])
def test_hooks_are_called(name: str) -> None:
    block, x, seen = make_block(), make_map((2, 15, 33)), []
    block.get_submodule(name).register_forward_hook(lambda *args: seen.append(name))
    block(x)
    assert seen


@torch.no_grad()
def test_what_a_hook_keeps_stays() -> None:
    """No hook is given scratch memory."""
    block, x, kept = make_block(), make_map((2, 15, 33)), []
    block.pool_layers[0].register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    block(x)
    before = kept[0].clone()
    block(2 * x)
    assert torch.equal(kept[0], before)


def with_sdpa(block: FocalBlock) -> None:
    block.attn.impl = 'sdpa'


def with_attention_dropout(block: FocalBlock) -> None:
    block.train().attn.attn_drop = 0.5


def with_another_qkv(block: FocalBlock) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    block.attn.qkv = Doubled(DIM, 3 * DIM).double()


def with_another_attention(block: FocalBlock) -> None:
    block.attn.__class__ = type('Another', (type(block.attn),), {})


def with_drop_path(block: FocalBlock) -> None:
    block.train().drop_path.drop_prob = 0.5


@torch.no_grad()
@pytest.mark.parametrize(
    'change',
    [
        with_sdpa,
        with_attention_dropout,
        with_another_qkv,
        with_another_attention,
        with_drop_path,
    ],
)
def test_what_is_left_to_the_layers(change: Callable, lean_calls: list) -> None:
    block = make_block()
    change(block)
    block(make_map((2, 15, 33)))
    assert not lean_calls


@torch.no_grad()
def test_autocast_is_left_to_the_layers(lean_calls: list) -> None:
    with torch.autocast('cpu', torch.bfloat16):
        make_block(torch.float32)(make_map((2, 15, 33), torch.float32))
    assert not lean_calls


@torch.no_grad()
def test_environment_chooses(lean_calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = make_block(), make_map((2, 15, 33))
    monkeypatch.setenv('MMFOCAL_ATTN_IMPL', 'reference')
    truth = block(x)
    assert not lean_calls
    monkeypatch.setenv('MMFOCAL_ATTN_IMPL', 'chunked')
    torch.testing.assert_close(block(x), truth)
    assert len(lean_calls) == 1
