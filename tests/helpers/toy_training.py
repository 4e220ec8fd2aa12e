# SPDX-License-Identifier: Apache-2.0
"""A training of milliseconds with all state that resuming must restore."""

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmfocal.engine.checkpoints import SafeCheckpointHook
from tools.dev.checkpoint_state import state_of
from tools.train import HOOKS as HOOKS_OF_TRAININGS


class Noise(Dataset):
    """Twelve samples with an augmentation that draws from all three generators."""

    metainfo = dict(classes=('noise',))

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        drawn = [random.random(), np.random.rand(), torch.rand(()).item()]
        return dict(inputs=torch.tensor([float(index), *drawn]))


class Net(BaseModel):
    """Two layers with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8, 1)

    def forward(self, inputs: Tensor, mode: str) -> Any:
        out = self.last(self.drop(self.first(inputs).relu()))
        return dict(loss=out.square().mean()) if mode == 'loss' else list(out)


class Count(BaseMetric):
    """Count how often a validation runs."""

    runs = 0

    def process(self, data_batch: Any, data_samples: list) -> None:
        self.results += data_samples

    def compute_metrics(self, results: list) -> dict:
        self.runs += 1
        return dict(count=len(results))


def train(
    work_dir: Path,
    length: int = 8,
    by_epoch: bool = False,
    resume: str | Path | None = None,
    hooks: tuple[Hook, ...] = (),
    workers: int = 0,
    **settings: Any,
) -> Runner:
    """Train with the hooks of ``tools/train.py``.

    Args:
        work_dir: Folder for a checkpoint every two iterations, or every epoch of three.
        length: Number of iterations or epochs.
        by_epoch: Whether ``length`` counts epochs.
        resume: Checkpoint to resume from.
        hooks: Further hooks.
        workers: Data workers.
        **settings: Other arguments of the runner.
    """
    HOOKS.register_module(name='CheckpointHook', module=SafeCheckpointHook, force=True)
    torch.manual_seed(0)
    loader = dict(
        batch_size=4,
        num_workers=workers,
        dataset=Noise(),
        sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
    )
    unit = 'epochs' if by_epoch else 'iters'
    train_cfg = {'by_epoch': by_epoch, f'max_{unit}': length, 'val_interval': length}
    checkpoint = dict(type='CheckpointHook', interval=1 if by_epoch else 2, by_epoch=by_epoch)
    schedule = dict(type='CosineAnnealingLR', by_epoch=by_epoch, begin=0, end=length)
    settings.setdefault('param_scheduler', [schedule])
    checkpoint.update(settings.pop('checkpoint', {}))
    metric = Count()
    cfg = dict(
        model=Net(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=train_cfg,
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
        val_cfg=dict(),
        val_evaluator=[metric],
        default_hooks=dict(checkpoint=checkpoint),
        custom_hooks=[dict(type='EMAHook')],
        randomness=dict(seed=3),
        load_from=None if resume is None else str(resume),
        resume=resume is not None,
        log_level='ERROR',
    )
    if settings.pop('cfg_wrapper', False):  # as adapt_to_machine does without a GPU
        cfg['model'] = MMDistributedDataParallel(Net(), device_ids=None)
    cfg.update(copy.deepcopy(settings))
    runner = Runner(
        **cfg, cfg=dict(randomness=cfg['randomness'], param_scheduler=cfg['param_scheduler']),
        experiment_name=f'{work_dir}_{length}_{resume}_{random.random()}',
    )  # fmt: skip
    for hook in (*(each() for each in HOOKS_OF_TRAININGS), *hooks):
        runner.register_hook(hook)
    runner.metric = metric
    runner.train()
    return runner


def differing(first: Path, second: Path) -> list[str]:
    """Name what is not equal bit for bit in two checkpoints."""
    one, two = (state_of(torch.load(path, weights_only=False)) for path in (first, second))
    assert one.keys() == two.keys() and len(one) > 20
    return [name for name, value in one.items() if not torch.equal(value, two[name])]
