# SPDX-License-Identifier: Apache-2.0
"""When the block's parts take a shortcut, and that nobody can tell."""

from collections.abc import Callable

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from torch import nn
from torch.nn.utils import parametrize

from mmfocal.models.focal_transformer import FocalBlock, PatchEmbed
from mmfocal.models.layers import (
    Mlp,
    make_pool_layer,
    norm_mlp,
    pad_or_crop,
    pad_to_multiple,
    pool_cells,
)
from mmfocal.ops import chunked_mlp
from mmfocal.ops.focal_attention import FocalGeometry
from tests.models.test_focal_transformer import nano


@pytest.fixture
def chunked_calls(count_calls: Callable) -> list:
    """Grows with each call of the chunked MLP."""
    return count_calls(chunked_mlp, 'norm_mlp')


class Block(nn.Module):
    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), Mlp(8, 32, drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return norm_mlp(self.norm, self.mlp, x)


@pytest.mark.parametrize(('training_bytes', 'expected'), [(0, 1), (2**30, 0)])
def test_training_by_size(
    training_bytes: int, expected: int, chunked_calls: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_mlp, 'TRAINING_BYTES', training_bytes)
    block, x = Block(drop=0.0).train(), torch.randn(2, 3, 5, 8)
    block(x).sum().backward()
    assert len(chunked_calls) == expected
    with torch.no_grad():
        torch.testing.assert_close(block(x), block.mlp(block.norm(x)))
    assert len(chunked_calls) == expected + 1


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def hook(block: Block) -> None:
    block.mlp.fc1.register_forward_hook(lambda module, args, out: 2 * out)


def pre_hook(block: Block) -> None:
    block.norm.register_forward_pre_hook(lambda module, args: (args[0].sin(),))


def hook_of_mlp(block: Block) -> None:
    block.mlp.register_forward_hook(lambda module, args, out: out + 1)


def other_forward(block: Block) -> None:
    block.mlp.forward = torch.sin


def parametrization(block: Block) -> None:
    parametrize.register_parametrization(block.mlp.fc2, 'weight', Doubled())


def replaced_layer(block: Block) -> None:
    block.mlp.fc1 = nn.Sequential(block.mlp.fc1, Doubled())


def layer_without_bias(block: Block) -> None:
    block.mlp.fc2 = nn.Linear(32, 8, bias=False)


def tanh_gelu(block: Block) -> None:
    block.mlp.act = nn.GELU('tanh')


@pytest.mark.parametrize(
    'change',
    [
        hook,
        pre_hook,
        hook_of_mlp,
        other_forward,
        parametrization,
        replaced_layer,
        layer_without_bias,
        tanh_gelu,
    ],
)
@torch.no_grad()
def test_changed_layers_are_called(change: Callable, chunked_calls: list) -> None:
    block, x = Block(), torch.randn(2, 3, 5, 8)
    before = block(x)
    assert len(chunked_calls) == 1
    change(block)
    assert torch.equal(block(x), block.mlp(block.norm(x)))
    assert not torch.equal(block(x), before)
    assert len(chunked_calls) == 1


@torch.no_grad()
def test_global_hooks_are_called(chunked_calls: list) -> None:
    seen, block = [], Block()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: seen.append(module)
    )
    block(torch.randn(2, 3, 5, 8))
    handle.remove()
    assert not chunked_calls
    assert seen[:2] == [block.norm, block.mlp.fc1]


@torch.no_grad()
def test_dropout_while_training(chunked_calls: list) -> None:
    block, x = Block(drop=0.5).train(), torch.randn(2, 3, 5, 8)
    assert not torch.equal(block(x), block(x))
    assert not chunked_calls
    block.eval()(x)
    assert len(chunked_calls) == 1


def test_flop_counter_sees_the_layers() -> None:
    analysis = get_model_complexity_info(Block(), input_shape=(3, 5, 8), show_table=False)
    assert analysis['flops'] >= 3 * 5 * 2 * 8 * 32


def test_compiles_and_exports() -> None:
    block, x = Block(), torch.randn(2, 3, 5, 8)
    compiled = torch.compile(block, fullgraph=True, backend='eager')
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), block(x))
        exported = torch.export.export(block, (x,)).module()
        torch.testing.assert_close(exported(x), block(x))


def test_is_part_of_the_backbone(chunked_calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_mlp, 'TRAINING_BYTES', 0)
    nano()(torch.randn(1, 3, 64, 64))
    assert len(chunked_calls) == 5


@pytest.mark.parametrize(
    ('cell', 'grid', 'size'),
    [(7, (2, 3), (14, 21)), (3, (4, 6), (14, 21)), (1, (7, 14), (7, 14)), (2, (3, 1), (7, 2))],
)
def test_fc_pool_is_a_linear_layer_over_positions(
    cell: int, grid: tuple[int, int], size: tuple[int, int]
) -> None:
    pool = make_pool_layer('fc', 5, cell).double()
    x = torch.randn(2, *size, 5, dtype=torch.float64, requires_grad=True)
    out = pool_cells(x, pool, cell, grid)
    top, left = ((n - cells * cell) // 2 for n, cells in zip(size, grid, strict=True))
    cells = x.permute(0, 3, 1, 2)[:, :, top:, left:].unfold(2, cell, cell).unfold(3, cell, cell)
    cells = cells[:, :, : grid[0], : grid[1]].permute(0, 2, 3, 1, 4, 5).flatten(4)
    expected = nn.functional.linear(cells, pool.weight, pool.bias).squeeze(-1)
    seed = torch.randn_like(expected)
    leaves = [x, *pool.parameters()]
    terms = expected.numel() * cell**2
    for ours, plain in zip(
        [out, *torch.autograd.grad(out, leaves, seed)],
        [expected, *torch.autograd.grad(expected, leaves, seed)],
        strict=True,
    ):
        bound = terms * torch.finfo(torch.float64).eps * plain.abs().max()
        assert (ours - plain).abs().max() <= bound


@torch.no_grad()
def test_padding_copies_what_it_must() -> None:
    x = torch.arange(2.0 * 3 * 4).view(1, 2, 3, 4)
    assert pad_to_multiple(x, 1).data_ptr() == x.data_ptr()
    padded = pad_to_multiple(x, 2)
    assert padded.shape == (1, 2, 4, 4) and padded[:, :, 3:].abs().max() == 0
    cropped = pad_or_crop(padded, 2, 3)
    assert torch.equal(cropped, x) and cropped.data_ptr() == padded.data_ptr()


def test_one_graph_serves_padded_and_unpadded_maps() -> None:
    """Maps of several windows; a single row or column of them is a case of its own."""
    graphs, block = [], FocalBlock(8, 2, FocalGeometry(3, 1, 3, 2), impl='sdpa')
    compiled = torch.compile(
        block, fullgraph=True, dynamic=True, backend=lambda graph, _: graphs.append(graph) or graph
    )
    for size in [(10, 14), (9, 14), (12, 16), (12, 15), (7, 8)]:
        x = torch.randn(1, *size, 8)
        torch.testing.assert_close(compiled(x), block(x))
    assert len(graphs) == 1


def test_a_trace_serves_other_sizes() -> None:
    embed = PatchEmbed(3, 4, stride=4)
    traced = torch.jit.trace(embed, torch.randn(1, 3, 16, 16))
    x = torch.randn(1, 3, 18, 17)
    torch.testing.assert_close(traced(x), embed(x))
