# SPDX-License-Identifier: Apache-2.0
"""Composed tables are kept without gradients, and never when they have changed."""

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from mmfocal.models import FocalTransformer
from mmfocal.models.focal_transformer import FocalAttention
from mmfocal.ops.focal_attention import FocalGeometry, geometry
from mmfocal.ops.focal_attention.bias_cache import BiasCache

GEOMETRY = FocalGeometry(3, 1, 3, 2)
IMAGES = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def compositions(count_calls: Callable) -> list:
    """Grows with each composition, whoever asks for it."""
    return count_calls(geometry, 'own_bias')


def make_layer() -> FocalAttention:
    torch.manual_seed(0)
    layer = FocalAttention(8, 2, GEOMETRY, impl='sdpa').eval()
    for table in layer.bias.tables:
        torch.nn.init.normal_(table)
    return layer


def attend(layer: FocalAttention, x: Tensor | None = None) -> Tensor:
    x = torch.ones(1, 6, 9, 8).cumsum(1).cos() if x is None else x
    return layer(x, [x[:, ::3, ::3]], GEOMETRY)


def fresh(layer: FocalAttention) -> Tensor:
    layer.bias_cache = BiasCache()
    return attend(layer)


@torch.enable_grad()
def fused_step(layer: FocalAttention) -> None:
    """PyTorch counts no write of it."""
    layer.bias.own.grad = torch.ones_like(layer.bias.own)
    torch.optim.AdamW([layer.bias.own], lr=1.0, fused=True).step()


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_composed_once(mode: Callable, compositions: list) -> None:
    layer = make_layer()
    with mode():
        first, second = attend(layer), attend(layer)
        assert len(compositions) == 1
        assert torch.equal(first, second)
        assert torch.equal(first, fresh(layer))


@pytest.mark.parametrize('impl', ['sdpa', 'chunked'])
def test_whole_backbone(impl: str, compositions: list) -> None:
    arch = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2))
    model = FocalTransformer(arch, attn_impl=impl).eval()
    with torch.no_grad():
        first, second = model(IMAGES), model(IMAGES)
    assert len(compositions) == 4
    assert all(map(torch.equal, first, second))


CHANGES = {
    'written to': lambda layer: layer.bias.own.add_(1.0),
    'loaded': lambda layer: layer.load_state_dict(
        {name: value + 1.0 for name, value in layer.state_dict().items()}
    ),
    'moving average or swapping hook': lambda layer: layer.bias.own.data.add_(1.0),
    'fused optimizer': fused_step,
    'written by NumPy': lambda layer: np.negative(*[layer.bias.own.detach().numpy()] * 2),
    'other numbers': lambda layer: layer.double().float().half().float(),
    'momentum in training': lambda layer: (
        attend(layer.train()),
        layer.bias.own.data.add_(1.0),
    ),
    'other storage': lambda layer: setattr(layer.bias.own, 'data', layer.bias.own + 1.0),
}


@pytest.mark.parametrize('change', CHANGES.values(), ids=list(CHANGES))
@torch.no_grad()
def test_changes_are_noticed(change: Callable) -> None:
    layer = make_layer()
    before = attend(layer)
    change(layer)
    after = attend(layer)
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh(layer))


@torch.no_grad()
def test_parameters_of_one_call() -> None:
    """Each in memory that the last ones may have had."""
    layer = make_layer()
    x = torch.randn(1, 6, 9, 8)
    call = (x, [x[:, ::3, ::3]], GEOMETRY)
    for shift in range(4):
        state = {name: value + shift for name, value in layer.state_dict().items()}
        ours = torch.func.functional_call(layer, state, call)
        kept = layer.bias_cache
        layer.bias_cache = BiasCache()
        assert torch.equal(ours, torch.func.functional_call(layer, state, call))
        layer.bias_cache = kept
        del state


@torch.no_grad()
def test_views_of_one_table() -> None:
    """They begin at the same address, but are read otherwise."""
    layer = make_layer()
    x = torch.randn(1, 6, 9, 8)
    name, own = 'relative_position_bias_table', layer.bias.own.clone()
    tied = own[:, :1].expand(-1, 2)
    outs = [
        torch.func.functional_call(layer, {name: table}, (x, [x[:, ::3, ::3]], GEOMETRY))
        for table in (own, tied)
    ]
    assert not torch.equal(*outs)


@torch.no_grad()
def test_forward_mode_differentiation() -> None:
    layer = make_layer()
    attend(layer)
    with forward_ad.dual_level():
        own = forward_ad.make_dual(layer.bias.own.detach(), torch.ones_like(layer.bias.own))
        bias = layer.bias._replace(own=own)
        merged = geometry.merged_bias(layer.bias_cache(bias, GEOMETRY), GEOMETRY)
        assert forward_ad.unpack_dual(merged).tangent.sum() > 0


def test_copies_keep_nothing() -> None:
    layer = make_layer()
    with torch.no_grad():
        attend(layer)
    assert layer.bias_cache._kept is not None
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied.bias_cache._kept is None


def test_half_precision_is_composed_in_fp32() -> None:
    layer = make_layer().half()
    with torch.no_grad():
        kept = layer.bias_cache(layer.bias, GEOMETRY).merged
    assert kept.dtype == torch.float32
    assert (kept != kept.half()).any()  # logaddexp of halves


def test_tables_that_train(compositions: list) -> None:
    layer = make_layer()
    attend(layer).sum().backward()
    attend(layer)
    assert len(compositions) == 2
    assert all(table.grad is not None for table in layer.bias.tables)


def test_kept_tables_serve_training_of_others(compositions: list) -> None:
    layer = make_layer().requires_grad_(False)
    with torch.inference_mode():
        attend(layer)
    x = torch.randn(1, 6, 9, 8, requires_grad=True)
    attend(layer, x).sum().backward()
    assert len(compositions) == 1
    assert x.grad.abs().sum() > 0


@torch.no_grad()
def test_graphs_hold_the_composition() -> None:
    """What is compiled or exported goes on reading the tables."""
    layer = make_layer()
    compiled = torch.compile(layer, backend='eager', fullgraph=True)
    x = torch.randn(1, 6, 9, 8)
    first = compiled(x, [x[:, ::3, ::3]], GEOMETRY)
    layer.bias.own.add_(1.0)
    second = compiled(x, [x[:, ::3, ::3]], GEOMETRY)
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, attend(layer, x))
