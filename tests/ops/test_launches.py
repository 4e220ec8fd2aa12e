# SPDX-License-Identifier: Apache-2.0
"""Number of kernels that a pass starts on a GPU, counted without one: Focal-T and Swin-T."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmfocal import FocalTransformer
from mmfocal.ops.focal_attention.impl import triton as backend
from tests.helpers.launches import launches, starts_nothing

timm = pytest.importorskip('timm')
pytestmark = pytest.mark.skipif(not backend.INSTALLED, reason='needs Triton')


# height, width, images; focal windows and expand sizes of the stages
CLASSIFICATION = ((224, 224, 128), (7, 5, 3, 1), (3, 3, 3, 0))
DETECTION = ((800, 1344, 2), (15, 13, 9, 7), (3, 3, 3, 3))


class LaunchCounter(TorchDispatchMode):
    """Counts launches of kernels; for our operators, every kernel, fill and copy they start."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if operator.namespace == 'mmfocal':
            self.counts.update(f'{operator}: {name}' for name in launches(operator, *args))
        elif not starts_nothing(operator):
            self.counts[str(operator)] += 1
        return operator(*args, **(kwargs or {}))


class FusedAttention(torch.autograd.Function):
    """PyTorch's attention on a GPU: one operator forward and one backward."""

    @staticmethod
    def forward(ctx, counts: Counter, *inputs: Tensor | None) -> Tensor:
        counts['fused attention'] += 1
        ctx.counts, ctx.inputs = counts, inputs
        return torch.empty_like(inputs[0])

    @staticmethod
    def backward(ctx, d_out: Tensor) -> tuple[Tensor | None, ...]:
        ctx.counts['fused attention, backward'] += 1
        return None, *(None if x is None else torch.empty_like(x) for x in ctx.inputs)


def make_fake(model: nn.Module) -> None:
    """Replace parameters and buffers by fake ones, inside a fake mode."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(torch.empty(value.shape))
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype)


def count(model: nn.Module, size: tuple[int, int, int], is_training: bool) -> Counter:
    """Launches of a pass under bf16 autocast, by name."""
    height, width, batch = size
    counter = LaunchCounter()

    def attend(q, k, v, attn_mask=None, dropout_p=0.0, **_) -> Tensor:
        return FusedAttention.apply(counter.counts, q, k, v, attn_mask)

    with FakeTensorMode(allow_non_fake_inputs=True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, 'scaled_dot_product_attention', attend)
        # as if these were tensors of a GPU
        patch.setattr(backend, '_device_reasons', lambda device, dtype: [])
        make_fake(model)
        images = torch.empty(batch, 3, height, width)
        model.train(is_training)
        with counter, torch.set_grad_enabled(is_training):
            with torch.autocast('cpu', torch.bfloat16):
                maps = model(images)
            if is_training:
                torch.autograd.backward(maps, [torch.empty_like(map_) for map_ in maps])
    return counter.counts


@pytest.fixture(scope='module')
def _fused() -> Iterator[None]:
    timm.layers.set_fused_attn(True, experimental=True)
    yield
    timm.layers.set_fused_attn(True)


def make_swin(size: tuple[int, int, int]) -> nn.Module:
    name = 'swin_tiny_patch4_window7_224'
    return timm.create_model(name, features_only=True, img_size=size[:2], drop_path_rate=0.0)


@pytest.mark.parametrize('case', [CLASSIFICATION, DETECTION], ids=['224x224', '800x1344'])
@pytest.mark.parametrize(('is_training', 'factor'), [(False, 1.0), (True, 1.1)])
def test_not_many_more_launches_than_swin(
    _fused: None, case: tuple, is_training: bool, factor: float
) -> None:
    size, focal_windows, expand_sizes = case
    focal = FocalTransformer(
        'tiny',
        focal_windows=focal_windows,
        expand_sizes=expand_sizes,
        drop_path_rate=0.0,
        attn_impl='triton',
    )
    ours, theirs = count(focal, size, is_training), count(make_swin(size), size, is_training)
    assert theirs['fused attention'] == 12 and theirs.total() > 300
    assert any('mmfocal.focal_attention' in name for name in ours)
    assert ours.total() <= factor * theirs.total(), (
        f'{ours.total()} launches, Swin {theirs.total()}: {ours.most_common()}'
    )
