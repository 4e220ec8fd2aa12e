# SPDX-License-Identifier: Apache-2.0
"""The combined bias is cached without gradients, and recomputed when a table changes."""

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mmfocal.models import FocalTransformer
from mmfocal.models.fast_path import call_block
from mmfocal.models.focal_transformer import FocalBlock
from mmfocal.ops.cpu import bias_cache
from mmfocal.ops.focal_attention import FocalGeometry
from mmfocal.ops.focal_attention.bias import bias_tables

GEOMETRY = FocalGeometry(3, 1, 3, 2)
IMAGES = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def combinations(count_calls: Callable) -> list:
    """List that grows with each combined bias that is cached."""
    return count_calls(bias_cache, '_combine')


def make_block() -> FocalBlock:
    torch.manual_seed(0)
    block = FocalBlock(8, 2, GEOMETRY).eval()
    for table in bias_tables(block.attn.bias):
        torch.nn.init.normal_(table)
    return block


def call(block: FocalBlock) -> Tensor:
    return call_block(block, torch.ones(1, 6, 9, 8).cumsum(1).cos())


def fresh(block: FocalBlock) -> Tensor:
    bias_cache._KEPT.clear()
    return call(block)


@torch.enable_grad()
def fused_step(block: FocalBlock) -> None:
    """Run a fused optimizer step, which does not increment version counters."""
    block.attn.bias.window.grad = torch.ones_like(block.attn.bias.window)
    torch.optim.AdamW([block.attn.bias.window], lr=1.0, fused=True).step()


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_combined_once(mode: Callable, combinations: list) -> None:
    block = make_block()
    with mode():
        first, second = call(block), call(block)
        assert len(combinations) == 1
        assert torch.equal(first, second)
        assert torch.equal(first, fresh(block))


@pytest.mark.parametrize('impl', ['auto', 'chunked'])
def test_whole_backbone(impl: str, combinations: list) -> None:
    arch = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2))
    model = FocalTransformer(arch, attn_impl=impl).eval()
    with torch.no_grad():
        first, second = model(IMAGES), model(IMAGES)
    assert len(combinations) == 4
    assert all(map(torch.equal, first, second))


CHANGES = {
    'written to': lambda block: block.attn.bias.window.add_(1.0),
    'loaded': lambda block: block.load_state_dict(
        {name: value + 1.0 for name, value in block.state_dict().items()}
    ),
    'moving average or swapping hook': lambda block: block.attn.bias.window.data.add_(1.0),
    'fused optimizer': fused_step,
    'written by NumPy': lambda block: np.negative(*[block.attn.bias.window.detach().numpy()] * 2),
    'other numbers': lambda block: block.double().float().half().float(),
    'momentum in training': lambda block: (
        call(block.train()),
        block.attn.bias.window.data.add_(1.0),
    ),
    'other storage': lambda block: setattr(
        block.attn.bias.window, 'data', block.attn.bias.window + 1.0
    ),
}


@pytest.mark.parametrize('change', CHANGES.values(), ids=list(CHANGES))
@torch.no_grad()
def test_changes_are_noticed(change: Callable) -> None:
    block = make_block()
    before = call(block)
    change(block)
    after = call(block)
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh(block))


@torch.no_grad()
def test_views_of_one_table() -> None:
    """The tables begin at the same address, but have different strides."""
    block = make_block()
    name, own = 'attn.relative_position_bias_table', block.attn.bias.window.clone()
    tied = own[:, :1].expand(-1, 2)
    x = torch.randn(1, 6, 9, 8)
    outs = []
    for table in (own, tied):
        with torch.nn.utils.stateless._reparametrize_module(block, {name: table}):
            outs.append(call_block(block, x))
            torch.testing.assert_close(outs[-1], block(x))
    assert not torch.equal(*outs)


def test_copies_keep_nothing() -> None:
    block = make_block()
    with torch.no_grad():
        call(block)
    assert block.attn in bias_cache._KEPT
    for copied in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert copied.attn not in bias_cache._KEPT


def test_is_forgotten_with_the_block() -> None:
    block, before = make_block(), len(bias_cache._KEPT)
    with torch.no_grad():
        call(block)
    assert len(bias_cache._KEPT) == before + 1
    del block
    assert len(bias_cache._KEPT) == before


def test_half_precision_is_combined_in_fp32() -> None:
    attn = make_block().half().attn
    with torch.no_grad():
        kept = bias_cache.kept_bias(attn, attn.bias, GEOMETRY)
    assert kept.dtype == torch.float32
    assert (kept != kept.half()).any()  # logaddexp of halves


def test_tables_that_train_are_not_kept(combinations: list) -> None:
    block = make_block()
    call(block).sum().backward()
    assert not combinations
    assert all(table.grad is not None for table in bias_tables(block.attn.bias))
