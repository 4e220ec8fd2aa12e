# SPDX-License-Identifier: Apache-2.0
"""A finished training whose validation is missing gets it when it is resumed."""

from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mmfocal.engine import ValidateFinished


class Line(BaseModel):
    """A model of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, inputs, mode):
        out = self.layer(inputs)
        return dict(loss=out.mean()) if mode == 'loss' else list(out)


class Count(BaseMetric):
    """How often a validation ran."""

    runs = 0

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        self.runs += 1
        return dict(count=len(results))


def train(work_dir: Path, train_cfg: dict, load_from: str | None = None) -> int:
    """Train and return the number of validations."""
    by_epoch = 'max_epochs' in train_cfg
    loader = DataLoader(TensorDataset(torch.ones(4, 1)), batch_size=2)
    metric = Count()
    runner = Runner(
        Line(),
        str(work_dir),
        train_dataloader=loader,
        train_cfg=train_cfg,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        val_dataloader=loader,
        val_cfg=dict(),
        val_evaluator=[metric],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=by_epoch)),
        load_from=load_from,
        resume=load_from is not None,
        experiment_name=f'{work_dir.name}_{load_from}',
    )
    runner.register_hook(ValidateFinished())
    runner.train()
    return metric.runs


@pytest.mark.parametrize(
    ('train_cfg', 'halfway', 'last'),
    [
        (dict(by_epoch=True, max_epochs=4, val_interval=4), 'epoch_2.pth', 'epoch_4.pth'),
        (dict(by_epoch=False, max_iters=4, val_interval=4), 'iter_2.pth', 'iter_4.pth'),
    ],
    ids=['epochs', 'iterations'],
)
def test_every_end_is_validated_once(tmp_path, train_cfg, halfway, last):
    assert train(tmp_path, train_cfg) == 1
    assert train(tmp_path, train_cfg, str(tmp_path / halfway)) == 1
    assert train(tmp_path, train_cfg, str(tmp_path / last)) == 1
