# SPDX-License-Identifier: Apache-2.0
"""The neck against its definition, written out level by level."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocal.detection import BiFPN

NORM = dict(type='GN', num_groups=4)


def build(**settings) -> BiFPN:
    defaults = dict(in_channels=[8, 12], out_channels=16, num_outs=3, num_repeats=2, norm_cfg=NORM)
    neck = BiFPN(**{**defaults, **settings})
    neck.init_weights()
    return neck


def fuse(weights: Tensor, conv: torch.nn.Module, maps: list[Tensor]) -> Tensor:
    positive = [max(weight, 0.0) for weight in weights.tolist()]
    mean = sum(weight * x for weight, x in zip(positive, maps)) / (sum(positive) + 1e-4)
    return conv(mean * mean.sigmoid())


def test_two_repeats_of_three_levels():
    neck = build()
    for name, parameter in neck.named_parameters():
        if name.endswith('weights'):  # 2 or 3 per fusion; negative ones do not count
            parameter.data = torch.tensor([0.5, 2.0, -1.0])[: len(parameter)]
    c3, c4 = torch.randn(2, 8, 13, 10), torch.randn(2, 12, 7, 5)
    c5 = F.max_pool2d(c4, 3, stride=2, padding=1)
    outs = [c3, c4, c5]
    for repeat, stage in enumerate(neck.stages):
        p3, p4, p5 = ((stage.laterals[i](x) if repeat == 0 else x) for i, x in enumerate(outs))
        up = F.interpolate(p5, size=(7, 5), mode='nearest')
        middle = fuse(stage.down[1].weights, stage.down[1].conv, [p4, up])
        up = F.interpolate(middle, size=(13, 10), mode='nearest')
        fine = fuse(stage.down[0].weights, stage.down[0].conv, [p3, up])
        down = F.max_pool2d(fine, 3, stride=2, padding=1)
        middle = fuse(stage.up[0].weights, stage.up[0].conv, [down, middle, p4])
        down = F.max_pool2d(middle, 3, stride=2, padding=1)
        coarse = fuse(stage.up[1].weights, stage.up[1].conv, [down, p5])
        outs = [fine, middle, coarse]
    for found, expected in zip(neck((c3, c4)), outs):
        torch.testing.assert_close(found, expected)


def test_a_level_of_the_right_width_has_no_lateral_convolution():
    first, second = build(in_channels=[16, 12]).stages
    kinds = [[type(lateral).__name__ for lateral in stage.laterals] for stage in (first, second)]
    assert kinds == [['Identity', 'ConvModule', 'ConvModule'], ['Identity'] * 3]


def test_size_of_the_published_neck():
    neck = build(
        in_channels=[192, 384, 768],
        out_channels=256,
        num_outs=5,
        norm_cfg=dict(type='GN', num_groups=32),
    )
    assert sum(p.numel() for p in neck.parameters()) == 10_185_254
    inputs = [
        torch.randn(1, c, *size) for c, size in ((192, (9, 5)), (384, (5, 3)), (768, (3, 2)))
    ]
    with torch.no_grad():
        sizes = [tuple(x.shape) for x in neck(inputs)]
    assert sizes == [(1, 256, h, w) for h, w in ((9, 5), (5, 3), (3, 2), (2, 1), (1, 1))]


def test_gradients_reach_every_parameter():
    neck = build()
    outs = neck((torch.randn(1, 8, 8, 8), torch.randn(1, 12, 4, 4)))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    lost = [name for name, p in neck.named_parameters() if p.grad is None or not p.grad.any()]
    assert not lost


def test_more_inputs_than_levels_are_refused():
    with pytest.raises(ValueError, match=r'num_outs=1 is less than the 2 inputs .*\[8, 12\]'):
        build(num_outs=1)
