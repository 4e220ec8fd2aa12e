# SPDX-License-Identifier: Apache-2.0
"""On an NVIDIA GPU: the back ends against the reference, and mixed precision."""

import pytest
import torch

from mmfocal import FocalTransformer
from tests.ops.test_focal_attention import (
    CASES,
    FAST_IMPLS,
    check_rounds_as_well_as_reference,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU'),
]


@pytest.mark.parametrize('impl', [impl for impl in FAST_IMPLS if impl != 'chunked'])
@pytest.mark.parametrize('case', CASES)
def test_rounds_as_well_as_reference_fp32(case: str, impl: str) -> None:
    check_rounds_as_well_as_reference(case, impl, 'cuda')


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
