# SPDX-License-Identifier: Apache-2.0
"""Time of a detector's training step by part, or throughput of its data loading.

The script runs the training pipeline, model and optimizer of configs, from random weights, on any
data set in COCO format. Images pass the config's augmentations, so sizes vary between steps; a
baseline with the same pipeline gets the same sizes.
"""

import argparse
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from typing import Any

import measure
import torch
from measure import MIB, Row
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from torch.utils.data import DataLoader

from mmfocal.engine import adapt_to_machine, check_inputs, read_config
from mmfocal.engine.machine import dicts_in
from mmfocal.engine.options import KeyValues, merge_options

PARTS = ('data', 'forward', 'backward', 'optimizer')


@dataclass(frozen=True)
class Case:
    """One candidate: a config and its options from the command line."""

    config: str
    options: str
    data_root: str | None
    ann_file: str
    images: str
    workers: int | None
    device: str


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config of a detector')
    add('--baseline', metavar='CONFIG', help='config to compare with, step by step')
    add('--data-root', help="folder of the data (default: the config's)")
    add('--ann-file', default='annotations/instances_train.json', help='in --data-root')
    add('--images', default='train/', metavar='FOLDER', help='in --data-root')
    add('--cfg-options', nargs='+', action=KeyValues, default={}, help='settings to override')
    add('--memory', action='store_true', help='also measure memory')
    add(
        '--workers',
        nargs='+',
        type=int,
        metavar='N',
        help="loading processes: one number (default: the config's), or several to try with "
        '--loader-only (default: 1 2 4)',
    )
    add('--loader-only', action='store_true', help='measure data loading alone')
    add('--batches', type=int, default=20, help='to load for each number of workers')
    add('--images-per-second', type=float, help='speed of one GPU; prints the workers it needs')
    add('--gpus', type=int, default=1, help='number of GPUs')
    measure.add_common_arguments(parser)
    parser.set_defaults(rounds=20)
    args = measure.parse(parser, argv)
    if args.loader_only:
        args.workers = args.workers or [1, 2, 4]
        if min(args.workers) < 1:
            parser.error('--workers must be at least 1 with --loader-only')
    elif len(args.workers or []) > 1:
        parser.error('--workers takes several numbers with --loader-only only')
    return args


def _use_data(cfg: Config, case: Case) -> None:
    """Replace the training data; data set and heads get the classes of the annotations."""
    root = Path(case.data_root)
    path = root / case.ann_file
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist; --ann-file names it in --data-root')
    classes = [category['name'] for category in json.loads(path.read_text())['categories']]
    for node in dicts_in(cfg.train_dataloader):
        if 'ann_file' in node:
            node.update(
                data_root=str(root),
                ann_file=case.ann_file,
                data_prefix=dict(node['data_prefix'], img=case.images),
                metainfo=dict(classes=classes),
            )
    for node in dicts_in(cfg.model):
        if 'num_classes' in node:
            node['num_classes'] = len(classes)


def _data_name(case: Case) -> str:
    return Path(case.data_root).name if case.data_root else "the config's"


def load_config(case: Case) -> Config:
    """Return the config of a case, without initial weights."""
    cfg = read_config(case.config)
    merge_options(cfg, json.loads(case.options))
    cfg.model.backbone.pop('init_cfg', None)
    cfg.model.pop('init_cfg', None)
    if case.data_root:
        _use_data(cfg, case)
    if case.workers is not None:
        cfg.train_dataloader.num_workers = case.workers
    cfg.train_dataloader.persistent_workers = cfg.train_dataloader.num_workers > 0
    if case.device == 'cpu':
        adapt_to_machine(cfg)
    check_inputs(cfg, ('train',))
    return cfg


def build_loader(cfg: Config) -> DataLoader:
    """Build the training loader with a fixed order of images."""
    set_multi_processing(**cfg.get('env_cfg', {}).get('mp_cfg', {}))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return Runner.build_dataloader(cfg.train_dataloader, seed=0)


class StopWatch:
    """Sums the time of each part of a step."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._last = self._now()
        self.seconds: dict[str, float] = {}

    def _now(self) -> float:
        if self._device == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter()

    def lap(self, part: str) -> None:
        now = self._now()
        self.seconds[part], self._last = now - self._last, now


def make_step(case: Case) -> Callable[[], dict[str, Any]]:
    """Return a training step, which returns seconds per part, images, pixels and workers."""
    torch.manual_seed(0)
    MMLogger.get_current_instance().setLevel(logging.WARNING)  # otherwise it lists every weight
    cfg = load_config(case)
    batches: Iterator = chain.from_iterable(repeat(build_loader(cfg)))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        model.init_weights()
        model.to(case.device).train()
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)

    def step() -> dict[str, Any]:
        watch = StopWatch(case.device)
        batch = next(batches)
        watch.lap('data')
        with optimizer.optim_context(model):
            batch = model.data_preprocessor(batch, True)
            loss, _ = model.parse_losses(model(**batch, mode='loss'))
        watch.lap('forward')
        optimizer.backward(loss)
        watch.lap('backward')
        optimizer.step()
        optimizer.zero_grad()
        watch.lap('optimizer')
        images = batch['inputs']
        seen = dict(images=len(images), pixels=images[0, 0].numel())
        return watch.seconds | seen | dict(workers=cfg.train_dataloader.num_workers)

    return step


def measure_steps(cases: Sequence[Case], args: argparse.Namespace) -> list[Row]:
    """Train in turn; the last case is the baseline, if there is more than one."""
    steps = {case: make_step(case) for case in cases}
    for step in steps.values():  # the first step fills caches and starts the workers
        step()
    taken: dict[Case, list] = {}

    def run() -> dict[Case, list[float]]:
        taken.update({case: [] for case in cases})
        for _ in range(args.rounds):
            for case, step in steps.items():
                taken[case].append(step())
        return {c: [sum(step[part] for part in PARTS) for step in taken[c]] for c in cases}

    totals, why = measure.steadily(run, cases[1:], args.max_spread)
    if why:
        raise SystemExit(why)
    memory = dict.fromkeys(cases)
    if args.memory:
        for case, step in steps.items():
            memory[case] = measure.peak_memory(make_step, case, step, args.device, args.threads)
    beside = cases[-1] if len(cases) > 1 else None
    rows = []
    for case in cases:
        images = sum(step['images'] for step in taken[case])
        row = dict(config=Path(case.config).stem, data=_data_name(case))
        row |= dict(workers=taken[case][0]['workers'], batch=images / args.rounds)
        row['megapixels'] = sum(step['pixels'] for step in taken[case]) / args.rounds / 1e6
        row |= measure.time_columns(totals[case], totals.get(beside))
        row['baseline'] = Path(beside.config).stem if beside else ''
        row |= {f'{p}_ms': 1000 * median(step[p] for step in taken[case]) for p in PARTS}
        row['images_per_s'] = images / sum(totals[case])
        peak = memory[case]
        row['memory_mib'] = None if peak is None else peak / MIB
        row['memory_ratio'] = peak / memory[beside] if peak and beside else None
        rows.append(row)
    return rows


def measure_loader(case: Case, batches: int) -> Row:
    """Measure images per second of the training pipeline with ``case.workers`` processes."""
    cfg = load_config(case)
    loader = build_loader(cfg)
    iterator = chain.from_iterable(repeat(loader))
    for _ in range(case.workers * (loader.prefetch_factor + 1)):  # skips prefetched batches
        next(iterator)
    begin, images = time.perf_counter(), 0
    for _ in range(batches):
        images += len(next(iterator)['inputs'])
    rate = images / (time.perf_counter() - begin)
    return dict(
        config=Path(case.config).stem,
        data=_data_name(case),
        batch=cfg.train_dataloader.batch_size,
        workers=case.workers,
        images_per_s=rate,
        images_per_s_per_worker=rate / case.workers,
    )


def advise(rows: Sequence[Row], images_per_second: float, gpus: int) -> str:
    """Return the workers that each GPU needs, by the rate per worker of the smallest setting.

    Workers of several GPUs wait part of the time, so fewer cores than workers are busy.
    """
    one = rows[0]['images_per_s_per_worker']
    workers = math.ceil(images_per_second / one)
    cores = math.ceil(gpus * images_per_second / one)
    return (
        f'{gpus} GPU(s) that take {images_per_second:g} images/s each: num_workers = {workers} '
        f'per GPU, {cores} busy core(s) in all, at {one:.3g} images/s per worker.'
    )


def make_case(config: str, args: argparse.Namespace, workers: int | None) -> Case:
    """Return a case from the command line."""
    return Case(
        config,
        json.dumps(args.cfg_options),
        args.data_root,
        args.ann_file,
        args.images,
        workers,
        args.device,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the measurements of the command line."""
    args = parse_args(argv)
    if args.loader_only:
        counts = sorted(set(args.workers))
        rows = [measure_loader(make_case(args.config, args, n), args.batches) for n in counts]
    else:
        configs = [args.config, *filter(None, [args.baseline])]
        workers = args.workers[0] if args.workers else None
        rows = measure_steps([make_case(config, args, workers) for config in configs], args)
    measure.write_csv(args.csv, rows)
    title = 'Data loading' if args.loader_only else 'Training steps'
    measure.print_table(title, list(rows[0]), [list(row.values()) for row in rows])
    if args.loader_only and args.images_per_second:
        print(advise(rows, args.images_per_second, args.gpus))


if __name__ == '__main__':
    main()
