# SPDX-License-Identifier: Apache-2.0
"""Computed learning rates are those that a run of MMEngine has."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tools.dev.model_zoo.schedule import group_schedules, learning_rates, schedules_page

LENGTH = 5  # iterations of an epoch
SCHEDULERS = {
    'steps': [
        dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=7),
        dict(type='MultiStepLR', begin=0, end=6, by_epoch=True, milestones=[2, 4], gamma=0.1),
    ],
    'cosine': [
        dict(type='LinearLR', start_factor=0.1, end=2, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', eta_min=1e-5, T_max=6, convert_to_iter_based=True),
    ],
    'linear': [
        dict(type='LinearLR', start_factor=0.1, end=1, convert_to_iter_based=True),
        dict(type='LinearLR', start_factor=1.0, end_factor=0.01, begin=1),
    ],
    'iterations': [dict(type='PolyLR', eta_min=0.0, power=1.0, begin=3, by_epoch=False)],
}


def make_config(schedulers: list[dict], kind: str = 'ImageNet') -> Config:
    by_epoch = schedulers != SCHEDULERS['iterations']
    return Config(
        dict(
            model=dict(type='OneParameter'),
            train_dataloader=dict(dataset=dict(type=kind)),
            auto_scale_lr=dict(base_batch_size=1_281_167 // LENGTH + 1),
            optim_wrapper=dict(optimizer=dict(lr=0.1)),
            param_scheduler=schedulers,
            train_cfg=dict(by_epoch=True, max_epochs=6)
            if by_epoch
            else dict(by_epoch=False, max_iters=30),
        )
    )


class OneParameter(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor, mode: str = 'tensor') -> dict[str, Tensor]:
        return dict(loss=(self.weight * inputs).sum())


class Record(Hook):
    """Keeps the learning rate of every iteration."""

    def __init__(self) -> None:
        self.rates = []

    def before_train_iter(self, runner: Runner, **_: object) -> None:
        self.rates += runner.optim_wrapper.get_lr()['lr']


@pytest.mark.parametrize('kind', SCHEDULERS)
def test_rates_are_those_of_a_run(kind: str, tmp_path: Path) -> None:
    cfg = make_config(SCHEDULERS[kind])
    model, record = OneParameter(), Record()
    Runner(
        model,
        str(tmp_path),
        train_dataloader=DataLoader([dict(inputs=torch.ones(1))] * LENGTH),
        optim_wrapper=OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1)),
        param_scheduler=cfg.param_scheduler,
        train_cfg=cfg.train_cfg,
        custom_hooks=[record],
        default_hooks=dict(checkpoint=None, logger=None),
        log_level='WARNING',
        experiment_name=f'{tmp_path.name}',
    ).train()
    assert len(record.rates) == 6 * LENGTH
    assert learning_rates(cfg) == pytest.approx(record.rates)
    assert len(set(record.rates)) > 3


def test_equal_schedules_share_a_row():
    configs = {
        'focal_t_a_3x': make_config(SCHEDULERS['steps']),
        'focal_s_a_3x': make_config(SCHEDULERS['steps']),
        'focal_t_b_3x': make_config(SCHEDULERS['cosine']),
    }
    methods = dict(focal_t_a_3x='A', focal_s_a_3x='Another', focal_t_b_3x='B')
    first, second = sorted(group_schedules(configs, methods), key=lambda part: part.methods)
    assert (first.methods, second.methods) == (('A', 'Another'), ('B',))
    assert first.title == second.title == 'ImageNet-1K, 3x'
    assert {first.steps, second.steps} == {
        'LinearLR from 0 to 7 iterations, x 0.1 after 2 and 4 epochs',
        'LinearLR from 0 to 2 epochs, CosineAnnealingLR from 0 on',
    }
    page = schedules_page([first, second])
    assert page.count('| ImageNet-1K, 3x | A, Another | 256,234 | 30 | 0.1 |') == 1


def test_an_epoch_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match=r'train_dataloader\.dataset\.type .*ImageNet.* got LVIS'):
        learning_rates(make_config(SCHEDULERS['steps'], kind='LVIS'))
