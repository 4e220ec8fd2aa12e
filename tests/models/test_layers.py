# SPDX-License-Identifier: Apache-2.0
"""Pooling, padding, and graphs that serve maps of every size."""

import copy

import pytest
import torch
from torch import nn

from mmfocal.models.focal_transformer import FocalBlock, PatchEmbed
from mmfocal.models.layers import make_pool_layer, pad_or_crop, pad_to_multiple, pool_cells
from mmfocal.ops.focal_attention import FocalGeometry


@pytest.mark.parametrize(
    ('cell', 'grid', 'size'),
    [(7, (2, 3), (14, 21)), (3, (4, 6), (14, 21)), (1, (7, 14), (7, 14)), (2, (3, 1), (7, 2))],
)
def test_fc_pool_is_a_linear_layer_over_positions(
    cell: int, grid: tuple[int, int], size: tuple[int, int]
) -> None:
    pool = make_pool_layer('fc', 5, cell).double()
    x = torch.randn(2, *size, 5, dtype=torch.float64, requires_grad=True)
    out = pool_cells(x, pool, 'fc', cell, grid)
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
    """The graph is for maps of several windows; a single row or column of them is another case."""
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


@pytest.mark.parametrize('use_conv_embed', [False, True])
@pytest.mark.parametrize('stride', [2, 4])
def test_narrow_images_in_bfloat16(stride: int, use_conv_embed: bool) -> None:
    """oneDNN leaves most of a column unwritten if the output has no second one."""
    embed = PatchEmbed(3, 96, stride, use_conv_embed).bfloat16()
    for size in [(9 * stride, 1), (9 * stride, stride), (stride, 9 * stride)]:
        images = torch.randn(2, 3, *size).bfloat16().requires_grad_()
        exact = images.detach().double().requires_grad_()
        ours, truth = embed(images), copy.deepcopy(embed).double()(exact)
        # Rounded: the convolution, which the norm may enlarge, and the norm; in the gradient also
        # the gradients of both.
        eps = torch.finfo(torch.bfloat16).eps
        assert (ours - truth).abs().max() <= 2 * eps * truth.abs().max()
        found, expected = (
            torch.autograd.grad(out.square().mul(torch.arange(96)).sum(), leaf)[0]
            for out, leaf in ((ours, images), (truth, exact))
        )
        assert (found - expected).norm() <= 4 * eps * expected.norm()
