# SPDX-License-Identifier: Apache-2.0
"""The backbone computes what the released classification code computes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocal.ops.cpu import mlp
from mmfocal.ops.focal_attention.impl import chunked
from tests.helpers.attention import CPU_IMPLS
from tests.helpers.golden import GOLDEN_DIR, GOLDEN_NAMES, golden_backbone, load_golden

# The reference tensors contain the fp32 rounding of the released code, hence these bounds.
# Observed errors are about a tenth of them.
MAX_FEATURE_ERROR = 3e-5
MAX_GRADIENT_ERROR = 1e-4  # relative to the largest magnitude of the tensor


def run_golden(golden: dict, impl: str) -> dict[str, Tensor]:
    """Features, logits and gradients by name, cut to what the file holds."""
    model, head = golden_backbone(golden, attn_impl=impl)
    head = {key: value.requires_grad_() for key, value in head.items()}
    features = []
    for stage in model.layers:
        stage.register_forward_hook(lambda _, __, out: features.append(out.permute(0, 3, 1, 2)))
    x = (golden['x_int8'].float() / 32).requires_grad_()
    pooled = model(x)[-1].mean(dim=(2, 3))
    logits = F.linear(pooled, head['head.weight'], head['head.bias'])

    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(feature.shape, generator=generator) for feature in features]
    loss = sum((a * b).sum() / 1000 for a, b in zip(features, seeds, strict=True))
    (loss + logits.square().sum()).backward()

    step = golden['feat_step']
    results = {f'feats.{i}': f[:, :, ::step, ::step].detach() for i, f in enumerate(features)}
    parameters = {**dict(model.named_parameters()), **head}
    for key in golden['grads']:
        ours = f'norm3.{key[5:]}' if key.startswith('norm.') else key
        results[f'grads.{key}'] = parameters[ours].grad
    return {**results, 'logits': logits.detach(), 'grad_x': x.grad[:, :, ::16, ::16]}


def check_golden(name: str, impl: str) -> None:
    golden = load_golden(GOLDEN_DIR / f'{name}.pt')
    results = run_golden(golden, impl)
    for stage, feature in enumerate(golden['feats']):
        error = (results[f'feats.{stage}'] - feature).abs().max()
        assert error <= MAX_FEATURE_ERROR, f'stage {stage}: {error:.1e}'
    assert (results['logits'] - golden['logits']).abs().max() <= MAX_FEATURE_ERROR
    expected = {f'grads.{key}': value for key, value in golden['grads'].items()}
    for key, value in {**expected, 'grad_x': golden['grad_x']}.items():
        error = (results[key] - value).abs().max() / value.abs().max()
        assert error <= MAX_GRADIENT_ERROR, f'{key}: {error:.1e}'


@pytest.mark.parametrize('impl', CPU_IMPLS)
@pytest.mark.parametrize('name', GOLDEN_NAMES)
def test_equals_released_code(name: str, impl: str) -> None:
    check_golden(name, impl)


@pytest.mark.parametrize('name', GOLDEN_NAMES)
def test_equals_released_code_by_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Covers the code that CPUs run only at larger sizes or on other processors."""
    monkeypatch.setattr(mlp, 'TRAINING_BYTES', 0)
    monkeypatch.setattr(mlp, 'CHUNK_BYTES', 2**14)
    monkeypatch.setattr(chunked, 'TILE_BYTES', 2**17)
    monkeypatch.setenv('MMFOCAL_CPU_LINEAR', 'onednn')
    check_golden(name, 'chunked')


@pytest.mark.parametrize('name', GOLDEN_NAMES)
def test_parameter_count_equals_released_code(name: str) -> None:
    golden = load_golden(GOLDEN_DIR / f'{name}.pt')
    model, head = golden_backbone(golden, out_indices=(3,))
    count = sum(p.numel() for p in [*model.parameters(), *head.values()])
    assert count == golden['num_params']


def test_golden_files_are_there() -> None:
    assert len(GOLDEN_NAMES) == 7
