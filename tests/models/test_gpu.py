# SPDX-License-Identifier: Apache-2.0
"""On an NVIDIA GPU: the back ends against the reference, and mixed precision."""

import pytest
import torch
from torch import Tensor

from mmfocal import FocalTransformer
from mmfocal.ops.focal_attention import FocalGeometry
from tests.ops.test_focal_attention import CASES, FAST_IMPLS, call, make_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU'),
]


def run(inputs: dict[str, Tensor], geometry: FocalGeometry, impl: str, dtype: torch.dtype):
    """Output and the gradient of every input, by name."""
    leaves = {
        name: value.to('cuda', dtype, copy=True).requires_grad_() for name, value in inputs.items()
    }
    out = call(leaves, geometry, impl)
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out.backward(seed.to(out))
    return {'out': out.detach(), **{f'd_{name}': leaf.grad for name, leaf in leaves.items()}}


@pytest.mark.parametrize('impl', FAST_IMPLS)
@pytest.mark.parametrize('case', CASES)
def test_rounds_as_well_as_reference_fp32(case: str, impl: str) -> None:
    geometry, windows = CASES[case]
    inputs = make_inputs(geometry, windows)
    truth = run(inputs, geometry, 'reference', torch.float64)
    plain = run(inputs, geometry, 'reference', torch.float32)
    ours = run(inputs, geometry, impl, torch.float32)
    for name, value in truth.items():
        rounding = torch.finfo(torch.float32).eps * value.abs().max()
        bound = 2 * (plain[name] - value).abs().max() + 4 * rounding
        error = (ours[name] - value).abs().max()
        assert error <= bound, f'{name}: error {error:.1e}, bound {bound:.1e}'


def test_mixed_precision_step_keeps_parameters_finite() -> None:
    arch = dict(embed_dims=32, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8))
    model = FocalTransformer(arch, drop_path_rate=0.0).cuda()
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler('cuda', init_scale=2.0**8)
    with torch.autocast('cuda', torch.float16):
        loss = sum(out.square().mean() for out in model(torch.randn(2, 3, 160, 224).cuda()))
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**8, 'a gradient overflowed, so that the step was skipped'
    for (name, parameter), start in zip(model.named_parameters(), before, strict=True):
        assert parameter.isfinite().all(), name
        assert not parameter.equal(start), f'{name} did not move'
