# SPDX-License-Identifier: Apache-2.0
"""Training length and learning rates of configs, without their data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS

# Name and number of training images; for COCO, of images with annotations.
TRAINING_SETS = {
    'CocoDataset': ('COCO', 117_266),
    'ADE20KDataset': ('ADE20K', 20_210),
    'ImageNet': ('ImageNet-1K', 1_281_167),
    'ImageNet21k': ('ImageNet-22K', 14_197_122),
}
PAGE_HEAD = """\
# Learning rates

The figure shows the learning rate of every iteration; insets enlarge short warm-ups. If
schedulers overlap, their factors multiply, as for warm-up and cosine of ImageNet-1K. DyHead has
12 epochs, each of which contains the data set twice.

![Learning rate over iterations](images/schedules.png)

| schedule | methods | total batch | iterations | peak | changes |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Schedule:
    """Schedule shared by configs of the same data, length and learning rate.

    Attributes:
        title: Data set and length, such as ``COCO, 3x``.
        methods: Methods of the configs, sorted.
        batch: Total batch.
        steps: Description of the learning rate schedule.
        rates: Learning rate of every iteration.
    """

    title: str
    methods: tuple[str, ...]
    batch: int
    steps: str
    rates: list[float]


def epoch_length(cfg: Config) -> int:
    """Return the iterations of an epoch at the total batch of the learning rate.

    Args:
        cfg: Config of one of ``TRAINING_SETS``, possibly repeated.

    Raises:
        ValueError: If the length of the data set is unknown.
    """
    dataset = cfg.train_dataloader.dataset
    times = dataset.times if dataset.type == 'RepeatDataset' else 1
    _, images = _training_set(cfg)
    return math.ceil(times * images / cfg.auto_scale_lr.base_batch_size)


def _training_set(cfg: Config) -> tuple[str, int]:
    dataset = cfg.train_dataloader.dataset
    kind = dataset.get('dataset', dataset).type
    if kind not in TRAINING_SETS:
        raise ValueError(
            f'{cfg.filename}: train_dataloader.dataset.type must be one of '
            f'{", ".join(TRAINING_SETS)}, got {kind}'
        )
    return TRAINING_SETS[kind]


def learning_rates(cfg: Config) -> list[float]:
    """Step a config's schedulers through the whole training.

    Args:
        cfg: Config.

    Returns:
        Learning rate of every iteration.
    """
    if 'max_epochs' in cfg.train_cfg:
        length = epoch_length(cfg)
        total = cfg.train_cfg.max_epochs * length
    else:
        length = total = cfg.train_cfg.max_iters
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = [
        PARAM_SCHEDULERS.build(
            scheduler,
            default_args=dict(
                optimizer=optimizer,
                epoch_length=length,
                end=cfg.train_cfg.max_epochs if scheduler.get('by_epoch', True) else total,
            ),
        )
        for scheduler in cfg.param_scheduler
    ]
    optimizer.step()  # schedulers expect a step of the optimizer before their own
    rates = []
    for iteration in range(1, total + 1):
        rates.append(optimizer.param_groups[0]['lr'])
        for scheduler in schedulers:
            if not scheduler.by_epoch or iteration % length == 0:
                scheduler.step()
    return rates


def group_schedules(configs: Mapping[str, Config], methods: Mapping[str, str]) -> list[Schedule]:
    """Group configs by schedule.

    Args:
        configs: Configs by name, such as ``focal_t_atss_3x``.
        methods: Name of each config's method, by the same names.

    Returns:
        Schedules, sorted by title.
    """
    groups: dict[tuple, dict[str, Config]] = {}
    for name, cfg in configs.items():
        settings = (cfg.optim_wrapper.optimizer.lr, cfg.auto_scale_lr, cfg.param_scheduler)
        groups.setdefault((_title(name, cfg), repr(settings)), {})[name] = cfg
    schedules = []
    for (title, _), group in sorted(groups.items(), key=lambda item: item[0]):
        first = next(iter(group.values()))
        schedules.append(
            Schedule(
                title=title,
                methods=tuple(sorted({methods[name] for name in group})),
                batch=first.auto_scale_lr.base_batch_size,
                steps=', '.join(map(_describe, first.param_scheduler)),
                rates=learning_rates(first),
            )
        )
    return schedules


def _title(name: str, cfg: Config) -> str:
    data, _ = _training_set(cfg)
    length = name.split('_')[-1]
    if length.startswith('in'):  # names of classifiers end with the data
        length = f'{cfg.train_cfg.max_epochs} epochs'
    return f'{data}, {length}'


def _describe(scheduler: dict) -> str:
    unit = 'epochs' if scheduler.get('by_epoch', True) else 'iterations'
    if scheduler['type'] == 'MultiStepLR':
        milestones = ' and '.join(map(str, scheduler['milestones']))
        return f'x {scheduler["gamma"]} after {milestones} {unit}'
    end = f'to {scheduler["end"]:,} {unit}' if 'end' in scheduler else 'on'
    return f'{scheduler["type"]} from {scheduler.get("begin", 0):,} {end}'


def schedules_page(schedules: list[Schedule]) -> str:
    """Describe schedules in Markdown, below their figure.

    Args:
        schedules: Result of ``group_schedules``.
    """
    lines = [PAGE_HEAD]
    for part in schedules:
        methods = ', '.join(part.methods)
        numbers = f'{part.batch:,} | {len(part.rates):,} | {max(part.rates):.3g}'
        lines.append(f'| {part.title} | {methods} | {numbers} | {part.steps} |\n')
    return ''.join(lines)
