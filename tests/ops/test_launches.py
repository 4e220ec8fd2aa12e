# SPDX-License-Identifier: Apache-2.0
"""Focal-T beside Swin-T on a GPU, without one: kernels that a pass starts, and bytes it saves."""

from collections import Counter
from functools import cache, partial
from typing import Any, NamedTuple

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
CASES = {
    '224x224': ((224, 224, 128), (7, 5, 3, 1), (3, 3, 3, 0)),
    '800x1344': ((800, 1344, 2), (15, 13, 9, 7), (3, 3, 3, 3)),
}
LAYER_NORM = torch.nn.functional.layer_norm


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
        out = torch.empty_like(inputs[0])
        log_sum = out.new_empty(out.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(*inputs, out, log_sum)
        ctx.counts, ctx.number = counts, len(inputs)
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor) -> tuple[Tensor | None, ...]:
        ctx.counts['fused attention, backward'] += 1
        inputs = ctx.saved_tensors[: ctx.number]
        return None, *(None if x is None else torch.empty_like(x) for x in inputs)


class Pass(NamedTuple):
    """Launches of a pass by name, and bytes that it saves for the backward pass."""

    launches: Counter
    saved: int


def layer_norm(x: Tensor, *args: Any) -> Tensor:
    """In float32, as autocast runs it on a GPU."""
    return LAYER_NORM(x.float(), *args)


def save(kept: dict[int, Any], x: Tensor) -> Tensor:
    """Keep the memory of a saved tensor, except for parameters and buffers."""
    if not isinstance(x, nn.Parameter):
        memory = x.untyped_storage()
        kept[memory._cdata] = memory
    return x


def make_fake(model: nn.Module) -> None:
    """Replace parameters and buffers by fake ones, inside a fake mode."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(torch.empty(value.shape))
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype)


def run(model: nn.Module, size: tuple[int, int, int], is_training: bool) -> Pass:
    """Count a pass under bf16 autocast."""
    height, width, batch = size
    counter, kept = LaunchCounter(), {}

    def attend(q, k, v, attn_mask=None, dropout_p=0.0, **_) -> Tensor:
        return FusedAttention.apply(counter.counts, q, k, v, attn_mask)

    with FakeTensorMode(allow_non_fake_inputs=True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, 'scaled_dot_product_attention', attend)
        patch.setattr(torch.nn.functional, 'layer_norm', layer_norm)
        # as if these were tensors of a GPU
        patch.setattr(backend, '_device_reasons', lambda device, dtype: [])
        make_fake(model)
        images = torch.empty(batch, 3, height, width)
        model.train(is_training)
        hooks = torch.autograd.graph.saved_tensors_hooks(partial(save, kept), lambda x: x)
        with counter, hooks, torch.set_grad_enabled(is_training):
            with torch.autocast('cpu', torch.bfloat16):
                maps = model(images)
            if is_training:
                torch.autograd.backward(maps, [torch.empty_like(map_) for map_ in maps])
    return Pass(counter.counts, sum(memory.nbytes() for memory in kept.values()))


def make_swin(size: tuple[int, int, int]) -> nn.Module:
    name = 'swin_tiny_patch4_window7_224'
    return timm.create_model(name, features_only=True, img_size=size[:2], drop_path_rate=0.0)


@cache
def run_both(case: str, is_training: bool) -> tuple[Pass, Pass]:
    """Run Focal-T and Swin-T with fused attention."""
    size, focal_windows, expand_sizes = CASES[case]
    focal = FocalTransformer(
        'tiny',
        focal_windows=focal_windows,
        expand_sizes=expand_sizes,
        drop_path_rate=0.0,
        attn_impl='triton',
    )
    timm.layers.set_fused_attn(True, experimental=True)
    try:
        return run(focal, size, is_training), run(make_swin(size), size, is_training)
    finally:
        timm.layers.set_fused_attn(True)


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('is_training', [False, True])
def test_no_more_launches_than_swin(case: str, is_training: bool) -> None:
    ours, theirs = (each.launches for each in run_both(case, is_training))
    assert theirs['fused attention'] == 12 and theirs.total() > 300
    assert any('mmfocal.focal_attention' in name for name in ours)
    assert ours.total() <= theirs.total(), (
        f'{ours.total()} launches, Swin {theirs.total()}: {ours.most_common()}'
    )


@pytest.mark.parametrize('case', CASES)
def test_saves_no_more_bytes_than_swin(case: str) -> None:
    """Most of the peak of memory in training; weights are left out."""
    ours, theirs = (each.saved for each in run_both(case, True))
    assert theirs > 2**30
    assert ours <= theirs, f'{ours / theirs:.3f} of what Swin saves'
