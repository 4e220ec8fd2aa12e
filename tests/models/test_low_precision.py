# SPDX-License-Identifier: Apache-2.0
"""Mixed precision learns as fp32 does."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfocal import FocalTransformer
from mmfocal.datasets.digits import load_scans

STEPS, BATCH, SIDE = 100, 16, 56
ARCH = dict(embed_dims=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8))


def make_model() -> nn.Module:
    torch.manual_seed(0)
    backbone = FocalTransformer(ARCH, out_indices=(3,), drop_path_rate=0.0)
    return nn.ModuleList([backbone, nn.Linear(8 * ARCH['embed_dims'], 10)])


def predict(model: nn.Module, images: Tensor) -> Tensor:
    backbone, head = model
    return head(backbone(images)[0].mean((2, 3)))


def train(images: Tensor, labels: Tensor, dtype: torch.dtype) -> tuple[list[float], float]:
    """Losses of the steps, and accuracy on all images."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**12, enabled=dtype == torch.float16)
    is_mixed = dtype != torch.float32
    losses = []
    order = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        chosen = torch.randint(len(images), (BATCH,), generator=order)
        with torch.autocast('cpu', dtype if is_mixed else torch.bfloat16, enabled=is_mixed):
            loss = F.cross_entropy(predict(model, images[chosen]).float(), labels[chosen])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert all(each.isfinite().all() for each in model.parameters())
    with torch.no_grad():
        hits = predict(model.eval(), images).argmax(1) == labels
    return losses, hits.float().mean().item()


@pytest.mark.slow
def test_mixed_precision_learns_as_fp32() -> None:
    """No NaN; the first steps agree within rounding, the last ones are as good."""
    scans = load_scans('val')
    images = torch.from_numpy(scans.images)[:, None]
    images = F.interpolate(images, (SIDE, SIDE)).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(scans.labels)
    truth, accuracy = train(images, labels, torch.float32)
    assert accuracy > 0.9 and np.mean(truth[-20:]) < 0.5 * np.mean(truth[40:60])
    for dtype in (torch.bfloat16, torch.float16):
        losses, found = train(images, labels, dtype)
        assert np.isfinite(losses).all()
        # roundings of some ten layers; they grow with the steps
        assert np.mean(losses[:20]) == pytest.approx(np.mean(truth[:20]), rel=_rounding(dtype))
        # Later the runs diverge. They may lag at most 40 of 100 steps behind fp32.
        assert np.mean(losses[-20:]) < np.mean(truth[40:60]), dtype
        assert found > 0.85, f'{dtype}: accuracy {found:.3f}, fp32 {accuracy:.3f}'


def _rounding(dtype: torch.dtype) -> float:
    return 10 * torch.finfo(dtype).eps
