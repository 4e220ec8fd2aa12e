# SPDX-License-Identifier: Apache-2.0
"""Resume a run, even if it was killed during a write or during the last validation."""

import copy
import math
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner, find_latest_checkpoint

from mmfocal.errors import InputError

from .files import read_run_checkpoint
from .machine import is_first_process, tell
from .sharding import is_sharded

_PATTERNS = ('iter_*.pth', 'epoch_*.pth')
_PARTS = ('meta', 'state_dict', 'message_hub')  # what MMEngine resumes from
# entries of a scheduler's state that change with time; the others come from the config
_PROGRESS = ('last_step', 'verbose', 'base_values')


# ---- which checkpoint --------------------------------------------------------------------------


def latest_checkpoint(
    work_dir: str | Path,
    out_dir: str | Path | None = None,
    filename_tmpl: str | None = None,
    allow_pickle: bool = False,
) -> str | None:
    """Return the newest intact checkpoint of a run.

    Args:
        work_dir: Directory of the run; the file that its ``last_checkpoint`` names comes
            first, as in MMEngine.
        out_dir: ``default_hooks.checkpoint.out_dir``. Its checkpoints are in a folder with the
            name of the work directory.
        filename_tmpl: ``default_hooks.checkpoint.filename_tmpl``.
        allow_pickle: Unpickle objects of any class: trusted files only.

    Returns:
        Path of the file that ``last_checkpoint`` names, otherwise of the one with the most
        iterations, or None. Files before it in this order that cannot be resumed from are named
        in a warning.
    """
    for path in _newest_first(work_dir, out_dir, filename_tmpl, allow_pickle):
        problem = None if '://' in str(path) else _problem(Path(path), allow_pickle)
        if problem is None:
            return str(path)
        print_log(f'WARNING: {problem}. The previous checkpoint is tried next.')
    return None


def _newest_first(
    work_dir: str | Path, out_dir: str | Path | None, filename_tmpl: str | None, allow_pickle: bool
) -> Iterator[str | Path]:
    """Yield the checkpoints of a run, damaged ones too; remote ones are URLs."""
    folders = [Path(work_dir)]
    if out_dir:
        folders.append(Path(out_dir, Path(os.path.abspath(work_dir)).name))
    named = _named_checkpoint(work_dir)
    if '://' in named:
        yield named
        return
    patterns = {*_PATTERNS, re.sub(r'\{.*?\}', '*', filename_tmpl or _PATTERNS[0])}
    found = {path for folder in folders for pattern in patterns for path in folder.glob(pattern)}
    unique = {path.resolve(): path for path in found}
    # in a copy of a work directory, last_checkpoint may name a file where the original was
    first = [path for path in (Path(named), Path(work_dir, Path(named).name)) if named]
    first = [path for path in first if path.exists()][:1]
    rest = [path for key, path in unique.items() if key not in {each.resolve() for each in first}]
    yield from first
    yield from _most_iterations_first(rest, allow_pickle)


def _named_checkpoint(work_dir: str | Path) -> str:
    path = Path(work_dir, 'last_checkpoint')
    return (find_latest_checkpoint(str(work_dir)) or '') if path.is_file() else ''


def _most_iterations_first(paths: list[Path], allow_pickle: bool) -> Iterator[Path]:
    """Sort by the numbers in the names, and files by epoch among those by iteration by content.

    Modification times only decide between equal numbers: copies have others than the originals.
    """
    series: dict[str, list[Path]] = {}
    for path in sorted(paths, key=lambda path: (_number(path), path.stat().st_mtime)):
        series.setdefault(re.sub(r'\d+', '', path.name), []).append(path)
    while len(series) > 1:
        last = max(series, key=lambda name: _iterations(series[name][-1], allow_pickle))
        yield series[last].pop()
        if not series[last]:
            del series[last]
    for rest in series.values():
        yield from reversed(rest)


def _number(path: Path) -> int:
    return int((re.findall(r'\d+', path.stem) or [0])[-1])


def _iterations(path: Path, allow_pickle: bool) -> float:
    """Return the iterations of a checkpoint; damaged ones come first and are named."""
    if path.name.startswith('iter_'):
        return _number(path)
    try:
        return read_run_checkpoint(path, allow_pickle)['meta']['iter']
    except (ValueError, OSError, KeyError):
        return math.inf


def _problem(path: Path, allow_pickle: bool) -> str | None:
    """Return why a file cannot be resumed from.

    PyTorch writes zip archives. Their directory is at the end, so truncated files have none, and
    their checksums, which PyTorch does not verify, reveal damaged files. A sharded training writes
    folders. Folders of other strategies, such as DeepSpeed, are not checked.
    """
    if path.is_dir() and not is_sharded(path):
        return None
    for file in sorted(path.glob('*.pth')) if path.is_dir() else [path]:
        try:
            with ZipFile(file) as archive:
                if broken := archive.testzip():
                    return f'{file} is damaged: its part {broken} does not match its checksum'
        except (BadZipFile, OSError, EOFError):
            return f'{file} is incomplete (interrupted while it was written?)'
    try:
        checkpoint = read_run_checkpoint(path, allow_pickle)
    except (ValueError, OSError) as error:
        return str(error)
    absent = [part for part in _PARTS if part not in checkpoint]
    return f'{path} has no {absent[0]!r}: it is not a training checkpoint' if absent else None


def _places(cfg: Config) -> tuple[str, str | None, str | None]:
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    return cfg.work_dir, hook.get('out_dir'), hook.get('filename_tmpl')


def check_work_dir(cfg: Config, allow_pickle: bool = False) -> None:
    """Check that a new training replaces no checkpoints; the first process of a launcher checks.

    Args:
        cfg: Config with ``work_dir``.
        allow_pickle: Unpickle objects of any class: trusted files only.

    Raises:
        InputError: If there are checkpoints; names the newest, and what to do.
    """
    if not is_first_process(cfg.get('launcher', 'none')):
        return
    newest = next(_newest_first(*_places(cfg), allow_pickle), None)
    if newest is not None:
        raise InputError(
            f'{cfg.work_dir} has checkpoints of an earlier run; the newest is {newest}. '
            'A new run would replace them. Expected one of\n'
            '  --resume        to continue that run\n'
            '  --work-dir DIR  to train in another folder\n'
            '  --overwrite     to replace them'
        )


def resume(cfg: Config, checkpoint: str, allow_pickle: bool = False) -> None:
    """Change a config in place to resume from a checkpoint, and print its name.

    Args:
        cfg: Config with ``work_dir``.
        checkpoint: Path of a checkpoint, or ``'auto'`` for the newest.
        allow_pickle: Unpickle objects of any class: trusted files only.

    Raises:
        InputError: If a given checkpoint cannot be resumed from.
    """
    if checkpoint == 'auto':
        found = latest_checkpoint(*_places(cfg), allow_pickle)
    elif '://' in checkpoint:
        found = checkpoint
    else:
        problem = _problem(Path(checkpoint), allow_pickle)
        if problem:
            raise InputError(f'--resume {problem}')
        found = checkpoint
    # without a file MMEngine searches for one and may use an incomplete one
    cfg.resume = found is not None
    cfg.load_from = found or cfg.get('load_from')
    if found is None:
        start = f' from {cfg.load_from}' if cfg.load_from else ''
        tell(
            cfg,
            f'--resume: there is no checkpoint in {cfg.work_dir}; '
            f'training starts at iteration 0{start}',
        )
        return
    tell(cfg, f'--resume: resuming from {found}')
    is_local = Path(found).is_file() or is_sharded(found)
    if is_local and (cfg.get('randomness') or {}).get('seed') is None:
        # before data loaders are built, so that the order of random numbers is the same
        seed = read_run_checkpoint(found, allow_pickle)['meta'].get('seed')
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)


# ---- hooks -------------------------------------------------------------------------------------


class ResumeSchedule(Hook):
    """Use the config's schedule instead of the one in the resumed checkpoint.

    MMEngine restores the old lengths and learning rates, so a longer schedule has no effect.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the schedules, and remove content that could run code when it is resumed.

        Args:
            runner: The runner, with fresh schedulers and optimizer.
            checkpoint: Content of the file.
        """
        # MMEngine executes this text
        (checkpoint.get('meta') or {}).pop('config', None)
        self.differences: list[str] = []
        schedulers, saved = runner.param_schedulers, checkpoint.get('param_schedulers')
        groups = getattr(runner.optim_wrapper, 'param_groups', None)
        if not (isinstance(schedulers, list) and isinstance(saved, list)) or groups is None:
            return
        old_groups = (checkpoint.get('optimizer') or {}).get('param_groups')
        self.differences = _differing_schedulers(schedulers, saved)
        names = {f'initial_{scheduler.param_name}' for scheduler in schedulers}
        self.initial = [{name: group[name] for name in names & group.keys()} for group in groups]
        if isinstance(old_groups, list) and len(old_groups) == len(groups):
            self.differences += _differing_rates(self.initial, old_groups)
        if self.differences:
            checkpoint.pop('param_schedulers')

    def before_train(self, runner: Runner) -> None:
        """Advance the schedulers to the current iteration.

        Args:
            runner: The runner, resumed.
        """
        if not getattr(self, 'differences', None):
            return
        for group, initial in zip(runner.optim_wrapper.param_groups, self.initial, strict=True):
            for name, value in initial.items():
                group[name] = group[name.removeprefix('initial_')] = value
        schedule = copy.deepcopy(runner.cfg.param_scheduler)
        if strategy := getattr(runner, 'strategy', None):  # FlexibleRunner's
            strategy.param_schedulers = runner.param_schedulers = strategy.build_param_scheduler(
                schedule, runner.optim_wrapper
            )
        else:
            runner.param_schedulers = runner.build_param_scheduler(schedule)
        _replay(runner)
        rate = runner.optim_wrapper.param_groups[0]['lr']
        runner.logger.info(
            f'The schedule differs from that of the checkpoint ({"; ".join(self.differences)}). '
            'The schedule of the config is used: the learning rate is '
            f'{rate:.4g} at iteration {runner.iter}'
        )


def _differing_schedulers(schedulers: list, saved: list[dict]) -> list[str]:
    if len(schedulers) != len(saved):
        return [f'{len(saved)} -> {len(schedulers)} schedulers']
    differences = []
    for index, (scheduler, old) in enumerate(zip(schedulers, saved, strict=True)):
        new = scheduler.state_dict()
        for name in new.keys() & old.keys():
            if name.startswith('_') or name in _PROGRESS or new[name] == old[name]:
                continue
            if 'Plateau' in type(scheduler).__name__:  # depends on past metrics
                print_log(f'param_scheduler.{index}.{name} keeps its checkpoint value {old[name]}')
                continue
            differences.append(f'param_scheduler.{index}.{name}: {old[name]} -> {new[name]}')
    return sorted(differences)


def _differing_rates(new_groups: list[dict], old_groups: list[dict]) -> list[str]:
    for new, old in zip(new_groups, old_groups, strict=True):
        for name, value in new.items():
            if name in old and value != old[name]:
                return [f'{name.removeprefix("initial_")}: {old[name]} -> {value}']
    return []


def _replay(runner: Runner) -> None:
    """Step fresh schedulers through the completed part of the training."""
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    epoch_length = len(runner.train_dataloader) if by_epoch else None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # PyTorch warns if the optimizer does not step in between
        for iteration in range(1, runner.iter + 1):
            ends_epoch = by_epoch and iteration % epoch_length == 0
            for scheduler in runner.param_schedulers:
                if not scheduler.by_epoch or ends_epoch:
                    scheduler.step()


class ValidateFinished(Hook):
    """Validate when a resumed training has nothing left to train.

    The last checkpoint is written before the last validation, and MMEngine validates only after
    training. Without this hook, a kill in between leaves a run without its result.
    """

    def before_train(self, runner: Runner) -> None:
        """Check whether the training is complete.

        Args:
            runner: The runner, resumed.
        """
        self.finished = runner.iter >= runner.max_iters or runner.epoch >= runner.max_epochs

    def after_train(self, runner: Runner) -> None:
        """Validate if the training was complete and the config has a validation.

        Args:
            runner: The runner.
        """
        if self.finished and runner.val_loop is not None:
            runner.logger.info('Nothing was left to train: validating.')
            runner.val_loop.run()
