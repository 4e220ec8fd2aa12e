# SPDX-License-Identifier: Apache-2.0
"""Backbones of drawn options, sizes, dtypes, strides and batches agree with ``reference``."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip('hypothesis')

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmfocal.models import FocalTransformer

IMPLS = ('auto', 'sdpa', 'chunked')
FUZZ = settings(
    derandomize=True,
    deadline=None,
    max_examples=12,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of small backbones."""
    window = draw(st.integers(1, 5))
    heads = draw(st.sampled_from([1, 2, 3]))
    levels = [level for level in (1, 2, 3) if 2 ** max(level - 2, 0) <= window]
    last = draw(st.integers(0, 3))
    return dict(
        arch=dict(
            embed_dims=heads * draw(st.sampled_from([4, 8])),
            depths=tuple(draw(st.integers(1, 2)) for _ in range(4)),
            num_heads=(heads,) * 4,
        ),
        window_size=window,
        focal_levels=tuple(draw(st.sampled_from(levels)) for _ in range(4)),
        focal_windows=tuple(draw(st.sampled_from([1, 3, 5])) for _ in range(4)),
        expand_sizes=tuple(draw(st.integers(0, window)) for _ in range(4)),
        expand_layer=draw(st.sampled_from(['all', 'even', 'odd'])),
        pool_method=draw(st.sampled_from(['fc', 'conv', 'mean', 'max', 'none'])),
        use_conv_embed=draw(st.booleans()),
        use_shift=draw(st.booleans()),
        layer_scale_init=draw(st.sampled_from([None, 0.5])),
        abs_pos_embed_size=draw(st.sampled_from([None, 3, (2, 5)])),
        qkv_bias=draw(st.booleans()),
        out_indices=tuple(range(draw(st.integers(0, last)), last + 1)),
        with_cp=draw(st.booleans()),
        drop_path_rate=0.0,
    )


def strided(images: Tensor, layout: str) -> Tensor:
    """The same values in another layout."""
    if layout == 'channels last':
        return images.to(memory_format=torch.channels_last)
    if layout == 'transposed':
        return images.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == 'sliced':
        wide = images.new_zeros(*images.shape[:-1], 2 * images.shape[-1] + 1)
        wide[..., 1::2] = images
        return wide[..., 1::2]
    return images


def run(model: FocalTransformer, images: Tensor, train: bool) -> dict[str, Tensor]:
    """Outputs and, in training, gradients, in fp64."""
    model.train(train)
    found = {}
    if train:
        images = images.detach().requires_grad_()
        outputs = model(images)
        parameters = dict(model.named_parameters())
        wanted = {name: each for name, each in parameters.items() if each.requires_grad}
        loss = sum((out * out.detach().sign()).sum() for out in outputs)
        gradients = torch.autograd.grad(loss, [images, *wanted.values()])
        found = dict(zip(['images', *wanted], gradients, strict=True))
    else:
        with torch.no_grad():
            outputs = model(images)
    return {name: each.double() for name, each in found.items()} | {
        f'output {index}': out.detach().double() for index, out in enumerate(outputs)
    }


def distance(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Largest norm of a difference, relative to the norm of ``two``; empty tensors are equal."""
    assert one.keys() == two.keys()
    ratios = [
        ((one[name] - value).norm() / value.norm().clamp_min(1e-6)).item()
        for name, value in two.items()
        if value.numel()
    ]
    return max(ratios, default=0.0)


@pytest.mark.parametrize(
    'dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
@FUZZ
@given(
    arguments=options(),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    batch=st.sampled_from([1, 2, 3, 0]),
    layout=st.sampled_from(['plain', 'channels last', 'transposed', 'sliced']),
    impl=st.sampled_from(IMPLS),
    train=st.booleans(),
    seed=st.integers(0, 99),
)
def test_backbones_agree_with_reference(
    arguments: dict[str, Any],
    size: tuple[int, int],
    batch: int,
    layout: str,
    impl: str,
    dtype: torch.dtype,
    train: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    reference = FocalTransformer(**arguments, attn_impl='reference')
    model = FocalTransformer(**arguments, attn_impl=impl)
    model.load_state_dict(reference.state_dict())
    images = torch.randn(batch, 3, *size).to(dtype)
    truth = run(reference.to(dtype).double(), images.double(), train)
    ours = run(model.to(dtype), strided(images, layout), train)
    shapes = {name: value.shape for name, value in truth.items()}
    assert {name: value.shape for name, value in ours.items()} == shapes
    # As in tests/ops: at most twice the error of plain PyTorch in this dtype, and a few roundings.
    # The truth is fp64, so the error there is that of fp32, with smaller roundings.
    plain = torch.float32 if dtype == torch.float64 else dtype
    eps = torch.finfo(dtype).eps
    error = distance(run(reference.to(plain), images.to(plain), train), truth)
    bound = (2 * error / torch.finfo(plain).eps + 8) * eps
    assert distance(ours, truth) <= bound, f'{distance(ours, truth):.1e} > {bound:.1e}'
