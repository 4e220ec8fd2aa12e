# SPDX-License-Identifier: Apache-2.0
"""Lengths and learning rates are those of the published recipes, at all tested iterations."""

import math

import pytest
from mmengine.config import Config

from tests.helpers.config_suite import ROWS, load, method_of, words
from tools.dev.model_zoo.paper import read_paper
from tools.dev.model_zoo.schedule import (
    epoch_length,
    group_schedules,
    learning_rates,
    schedules_page,
)

COCO_EPOCH = 7330  # iterations of 16 images
IMAGENET_EPOCH = 1252  # of 1,024
# iterations and milestones in epochs
LENGTHS = {
    '1x': (12 * COCO_EPOCH, [8, 11]),
    '2x': (175_908, [8, 11]),  # 12 epochs, each image twice
    '3x': (36 * COCO_EPOCH, [27, 33]),
    '160k': (160_000, None),
    'in1k': (300 * IMAGENET_EPOCH, None),
    'in22k': (312_030, None),
}

_rates: dict[str, list[float]] = {}


def cached_rates(cfg: Config) -> list[float]:
    """Learning rate of every iteration, computed once for equal settings."""
    parts = (cfg.param_scheduler, cfg.train_cfg, cfg.train_dataloader.dataset.type)
    key = repr((*parts, cfg.optim_wrapper.optimizer.lr, cfg.auto_scale_lr))
    if key not in _rates:
        _rates[key] = learning_rates(cfg)
    return _rates[key]


def rates_of(name: str) -> list[float]:
    return cached_rates(load(name))


def line(iteration: int, begin: int, end: int, first: float, last: float) -> float:
    return first + (last - first) * (iteration - begin) / (end - begin)


@pytest.mark.parametrize('name', ROWS)
def test_length(name):
    iterations, milestones = LENGTHS[words(name)[-1]]
    assert len(rates_of(name)) == iterations
    if milestones:
        _, steps = load(name).param_scheduler
        assert (steps.type, list(steps.milestones), steps.gamma) == (
            *('MultiStepLR', milestones, 0.1),
        )


@pytest.mark.parametrize('name', [name for name in ROWS if name.startswith('detection/')])
def test_detectors_warm_up_and_drop_twice(name):
    cfg, rates = load(name), rates_of(name)
    peak = dict(sparsercnn=2.5e-5, dyhead=5e-5).get(method_of(name), 1e-4)
    if words(name)[0] == 'r50':
        peak = 0.01
    for iteration in (0, 1, 250, 499):
        assert rates[iteration] == pytest.approx(line(iteration, 0, 499, 1e-3 * peak, peak))
    first, second = (milestone * epoch_length(cfg) for milestone in LENGTHS[words(name)[-1]][1])
    for begin, end, rate in (
        *((500, first, peak), (first, second, 0.1 * peak), (second, len(rates), 0.01 * peak)),
    ):
        for iteration in (begin, (begin + end) // 2, end - 1):
            assert rates[iteration] == pytest.approx(rate), iteration


@pytest.mark.parametrize('name', [name for name in ROWS if name.startswith('segmentation/')])
def test_segmentors_warm_up_and_fall_to_zero(name):
    rates = rates_of(name)
    for iteration in (0, 1, 700, 1499):
        assert rates[iteration] == pytest.approx(line(iteration, 0, 1499, 6e-11, 6e-5))
    for iteration in (1500, 2000, 80_000, 159_000):
        # the released schedule falls from iteration 0 on, beneath the warm-up
        assert rates[iteration] == pytest.approx(line(iteration, 0, 160_000, 6e-5, 0), abs=6e-7)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize('name', [name for name in ROWS if name.endswith('_in1k')])
def test_classifiers_follow_the_released_cosine(name):
    """Over all 300 epochs; a linear warm-up replaces the first 20."""
    rates = rates_of(name)
    total, warmup = len(rates), 20 * IMAGENET_EPOCH
    for iteration in (0, 1, warmup // 2, warmup - 1):
        assert rates[iteration] == pytest.approx(line(iteration, 0, warmup, 1e-6, 1e-3), rel=0.02)
    for iteration in [*range(warmup, total, 9973), total - 1]:
        cosine = (1 + math.cos(math.pi * iteration / total)) / 2
        assert rates[iteration] == pytest.approx(1e-5 + (1e-3 - 1e-5) * cosine, rel=2e-3)


def test_pre_training_follows_swins_recipe():
    rates = rates_of('classification/focal_l_in22k')
    warmup = 5 * 3467
    for iteration in (0, warmup // 2, warmup - 1):
        assert rates[iteration] == pytest.approx(line(iteration, 0, warmup - 1, 1e-6, 1e-3))
    for iteration in (warmup, 100_000, 200_000, len(rates) - 1):
        expected = line(iteration, warmup, len(rates) - 1, 1e-3, 1e-5)
        assert rates[iteration] == pytest.approx(expected, rel=1e-3)


def test_the_page_of_the_docs_is_current(repo_root, monkeypatch):
    monkeypatch.setattr('tools.dev.model_zoo.schedule.learning_rates', cached_rates)
    configs = {name.split('/')[-1]: load(name) for name in ROWS}
    written = (repo_root / 'docs' / 'schedules.md').read_text()
    schedules = group_schedules(configs, read_paper().method_names)
    assert written == schedules_page(schedules), 'run python -m tools.dev.model_zoo.plot_schedules'
