# SPDX-License-Identifier: Apache-2.0
"""On an NVIDIA GPU: the backends against the reference, and mixed precision."""

import pytest
import torch
from torch import Tensor

from mmfocal import FocalTransformer
from mmfocal.ops.focal_attention import FocalGeometry
from mmfocal.ops.focal_attention.impl import triton
from tests.helpers import triton as triton_checks
from tests.helpers.attention import (
    CASES,
    call,
    check_rounds_as_well_as_reference,
    make_inputs,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU'),
]


needs_triton = pytest.mark.skipif(not triton.INSTALLED, reason='needs Triton')
MORE_CASES = CASES | {
    'largest window': (FocalGeometry(16, 8, 3, 3), (2, 3), 8),
    'many windows': (FocalGeometry(7, 3, 15, 2), (14, 23), 0),
}
HALF_DTYPES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize('case', CASES)
def test_rounds_as_well_as_reference_fp32(case: str) -> None:
    check_rounds_as_well_as_reference(case, 'sdpa', 'cuda')


@needs_triton
@pytest.mark.parametrize('deterministic', [False, True], ids=['atomic', 'deterministic'])
@pytest.mark.parametrize('dim', [8, 32, 49, 128])
@pytest.mark.parametrize('case', MORE_CASES)
def test_triton_fp32(case: str, dim: int, deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        triton_checks.check(*MORE_CASES[case], dtype=torch.float32, images=2, dim=dim)
    finally:
        torch.use_deterministic_algorithms(False)


@needs_triton
@pytest.mark.parametrize('dtype', HALF_DTYPES, ids=str)
@pytest.mark.parametrize('dim', [8, 32, 49, 128])
@pytest.mark.parametrize('case', MORE_CASES)
def test_triton_half(case: str, dim: int, dtype: torch.dtype) -> None:
    triton_checks.check_half(*MORE_CASES[case], dtype, images=2, dim=dim)


@needs_triton
@pytest.mark.parametrize('dtype', HALF_DTYPES, ids=str)
def test_triton_half_deterministic(dtype: torch.dtype) -> None:
    """Two runs are equal bit for bit, and correct."""

    def gradients() -> list[Tensor]:
        geometry, windows, _ = CASES['detection']
        inputs = make_inputs(geometry, windows, dim=32)
        leaves = {
            name: value.to('cuda', dtype if 'kv' in name else torch.float32).requires_grad_()
            for name, value in inputs.items()
        }
        out = call(leaves, geometry, 'triton')
        maps = [leaf for name, leaf in leaves.items() if 'kv' in name]
        return [out, *torch.autograd.grad(out.float().square().sum(), maps)]

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(), strict=True))
        triton_checks.check_half(*CASES['detection'], dtype, images=2, dim=32)
    finally:
        torch.use_deterministic_algorithms(False)


@needs_triton
def test_triton_block_fp32() -> None:
    """The whole fast path of a block."""
    triton_checks.check_fast_path(torch.float32, 1e-5)


@needs_triton
@pytest.mark.parametrize('mode', ['default', 'reduce-overhead'])
def test_triton_compiles(mode: str) -> None:
    geometry, windows, _ = CASES['detection']
    inputs = {name: value.cuda().float() for name, value in make_inputs(geometry, windows).items()}
    compiled = torch.compile(lambda x: call(x, geometry, 'triton'), fullgraph=True, mode=mode)
    expected = call(inputs, geometry, 'triton')
    for _ in range(3):  # with CUDA graphs: warm up, record, replay
        torch.testing.assert_close(compiled(inputs), expected)


@needs_triton
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_triton_on_another_gpu() -> None:
    geometry, windows, _ = CASES['shift']
    inputs = {name: value.float() for name, value in make_inputs(geometry, windows).items()}
    first, second = (
        call({name: value.to(f'cuda:{i}') for name, value in inputs.items()}, geometry, 'triton')
        for i in range(2)
    )
    torch.testing.assert_close(second.cpu(), first.cpu())


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
