# SPDX-License-Identifier: Apache-2.0
"""Training length, learning rate and schedule, scaled from a base config."""

import copy
import math
from typing import Any

from mmengine.config import Config

_LIMITS = ('begin', 'end', 'T_max', 'step_size')
WARMUP_SHARE = 0.1  # maximum share of the training for a warm-up that is counted in iterations


def plan(
    cfg: Config, images: int, batch: int, gpus: int = 1, epochs: int | None = None
) -> dict[str, Any]:
    """Scale a training schedule to a number of images.

    Args:
        cfg: Base config with ``auto_scale_lr.base_batch_size``.
        images: Number of training images.
        batch: Images per GPU and step.
        gpus: Number of GPUs.
        epochs: Number of epochs; by default that of the base.

    Returns:
        Settings that differ from the base: ``train_cfg``, ``param_scheduler``, ``optim_wrapper``,
        ``auto_scale_lr`` and the intervals of ``default_hooks.checkpoint``.
    """
    total_batch = batch * gpus
    per_epoch = max(math.ceil(images / total_batch), 1)
    by_iteration = cfg.train_cfg.get('type') == 'IterBasedTrainLoop'
    old = cfg.train_cfg.max_iters if by_iteration else cfg.train_cfg.max_epochs
    new = old if epochs is None else epochs * (per_epoch if by_iteration else 1)
    rate_ratio = total_batch / cfg.auto_scale_lr.base_batch_size
    rate = _rounded(cfg.optim_wrapper.optimizer.lr * rate_ratio)
    changes: dict[str, Any] = dict(
        optim_wrapper=dict(optimizer=dict(lr=rate)),
        auto_scale_lr=dict(base_batch_size=total_batch),
    )
    if by_iteration:
        interval = max(round(cfg.train_cfg.val_interval * new / old), 1)
        changes['train_cfg'] = dict(max_iters=new, val_interval=interval)
        saving = cfg.default_hooks.checkpoint.interval
        changes['default_hooks'] = dict(
            checkpoint=dict(interval=max(round(saving * new / old), 1))
        )
        steps = new
    else:
        changes['train_cfg'] = dict(max_epochs=new)
        steps = new * per_epoch
    schedulers = [
        _stretched(scheduler, new / old, by_iteration, steps) for scheduler in cfg.param_scheduler
    ]
    for scheduler in schedulers:
        if scheduler.get('eta_min'):
            scheduler['eta_min'] = _rounded(scheduler['eta_min'] * rate_ratio)
    changes['param_scheduler'] = schedulers
    return changes


def _stretched(scheduler: dict, ratio: float, by_iteration: bool, steps: int) -> dict:
    """Scale a scheduler's limits, or limit a warm-up that is counted in another unit."""
    scheduler = copy.deepcopy(dict(scheduler))
    scheduler.pop('_scope_', None)
    same_unit = scheduler.get('by_epoch', True) != by_iteration
    cap = max(round(WARMUP_SHARE * steps), 1)
    for key in _LIMITS:
        value = scheduler.get(key)
        if value is None:
            continue
        scaled = _scaled(value, ratio) if same_unit else min(value, cap)
        scheduler[key] = scaled
    if 'milestones' in scheduler and same_unit:
        scheduler['milestones'] = [_scaled(value, ratio) for value in scheduler['milestones']]
    return scheduler


def _scaled(value: float, ratio: float) -> int:
    return max(round(value * ratio), 1) if value else 0


def _rounded(rate: float) -> float:
    return float(f'{rate:.3g}')
