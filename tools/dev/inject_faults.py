# SPDX-License-Identifier: Apache-2.0
"""Interrupt small runs at random points, resume them, and compare their last checkpoints.

Each trial starts ``tools/train.py``, injects one fault, repeats the command with ``--resume`` and
compares weights, EMA, optimizer and schedule bit for bit with a run that was not interrupted.
The runs are forks of this process, which has imported everything, so that a trial takes
seconds.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from runpy import run_path
from tempfile import TemporaryDirectory

import psutil
import torch
from checkpoint_state import state_of
from mmpretrain.utils import register_all_modules
from torch import Tensor
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mmfocal.datasets.digit_scenes import DigitSceneParams, build
from mmfocal.models.pretrained import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
KINDS = ('SIGKILL', 'SIGTERM', 'dead data worker', 'dead rank of two', 'full disk')
LENGTH, INTERVAL = 12, 3
LIMIT = 900  # seconds after which a training hangs
CONFIG = f"""
_base_ = {str(ROOT / 'configs/quickstart/focal_nano_cls.py')!r}
model = dict(backbone=dict(drop_path_rate=0.2))
custom_hooks = [dict(type='EMAHook')]
train_cfg = dict(max_iters={LENGTH}, val_interval={LENGTH // 2})
train_dataloader = dict(batch_size=2, num_workers=1)
val_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(indices=4)
)
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(interval={INTERVAL}, max_keep_ckpts=-1)
)
"""
Main = Callable[[Sequence[str]], None]


@dataclass
class Trial:
    """One fault and its effect on the training.

    Attributes:
        kind: The fault.
        seed: Seed of its random point.
        code: Exit code of the interrupted process.
        reached: Last iteration before the fault.
        resumed: Iteration that the training was resumed from.
        broken: Number of checkpoints that cannot be read after the fault.
        problem: What went wrong, empty if nothing did.
    """

    kind: str
    seed: int
    code: int | None = None
    reached: int = 0
    resumed: int = 0
    broken: int = 0
    problem: str = ''

    @property
    def lost(self) -> int:
        """Iterations that had to be repeated."""
        return self.reached - self.resumed


# ---- runs --------------------------------------------------------------------------------------


def _train(main: Main, work_dir: Path, log: Path, ranks: int) -> None:
    """Body of a forked process: a run of one rank, or an agent that starts several."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    arguments = ['config.py', '--work-dir', str(work_dir), '--resume']
    if ranks == 1:
        return main(arguments)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend='c10d',
        rdzv_endpoint='localhost:0',
        max_restarts=0,
        start_method='fork',
    )
    elastic_launch(config, main)([*arguments, '--launcher', 'pytorch'])
    return None


def start(main: Main, work_dir: Path, log: Path, ranks: int) -> BaseProcess:
    """Start a run.

    Args:
        main: ``main`` of ``tools/train.py``.
        work_dir: Work directory.
        log: File for the printed output.
        ranks: Number of processes.
    """
    process = get_context('fork').Process(target=_train, args=(main, work_dir, log, ranks))
    process.start()
    return process


def finish(process: BaseProcess) -> int | None:
    """Wait for a run and return its exit code, None if it hangs; nothing is left running.

    Args:
        process: A started training.
    """
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:  # it has ended
        children = []
    process.join(LIMIT)
    for child in children:
        if child.is_running() and process.exitcode is None:
            child.kill()
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    psutil.wait_procs(children, timeout=60)
    return process.exitcode


# ---- faults ------------------------------------------------------------------------------------


def _descendants(process: BaseProcess, count: int) -> list[psutil.Process]:
    """Wait for forked children and return them in the order of their start.

    If the parent ends before, the list is empty.
    """
    parent = psutil.Process(process.pid)
    while process.is_alive():
        try:
            children = [
                child for child in parent.children() if child.cmdline() == parent.cmdline()
            ]
        except psutil.Error:
            continue
        if len(children) >= count:
            return sorted(children, key=lambda child: child.create_time())
        time.sleep(0.01)
    return []


def _wait_for(process: BaseProcess, log: Path, rng: random.Random) -> None:
    """Wait for a random iteration, 0 being the start-up, and then for a part of a second."""
    goal = rng.randint(0, LENGTH - 1)
    while process.is_alive() and goal:
        if log.exists() and f'{goal}/{LENGTH}]' in log.read_text():
            break
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.4 if goal else 4))


def strike(kind: str, process: BaseProcess, log: Path, rng: random.Random) -> bool:
    """Inject a fault at a random point.

    Args:
        kind: The fault.
        process: The training.
        log: Its printed output.
        rng: Chooses point and rank.

    Returns:
        Whether the training was still running.
    """
    if kind == 'full disk':
        return True  # small_disk causes this fault
    _wait_for(process, log, rng)
    if kind in ('SIGKILL', 'SIGTERM'):
        if process.is_alive():
            os.kill(process.pid, getattr(signal, kind))
            return True
        return False
    count = 2 if kind == 'dead rank of two' else 1
    victims = _descendants(process, count)[:count]
    if not victims:
        return False
    try:
        rng.choice(victims).kill()
    except psutil.NoSuchProcess:  # it has just ended
        return False
    return True


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a small file system in memory.

    Args:
        folder: Mount point.
        size: Size in bytes.

    Raises:
        PermissionError: If this user cannot mount file systems.
    """
    folder.mkdir(parents=True)
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)]
    done = subprocess.run(mount, text=True, capture_output=True)
    if done.returncode:
        raise PermissionError(f'a full disk cannot be simulated: {done.stderr.strip()}')
    try:
        yield
    finally:
        subprocess.run(['umount', str(folder)], check=True)


# ---- trials ------------------------------------------------------------------------------------


class Trials:
    """Runs without faults to compare with, and trials.

    Args:
        root: Folder for all runs, with the data.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.main: Main = run_path(str(ROOT / 'tools/train.py'))['main']
        self.whole: dict[int, dict[str, Tensor]] = {}
        self.size = 0

    def compare_with(self, ranks: int) -> dict[str, Tensor]:
        """Return the state after a run without faults.

        Args:
            ranks: Number of processes.
        """
        if ranks not in self.whole:
            work_dir, log = self.root / f'whole{ranks}', self.root / f'whole{ranks}.log'
            if finish(start(self.main, work_dir, log, ranks)) != 0:
                raise RuntimeError(log.read_text()[-3000:])
            last = work_dir / f'iter_{LENGTH}.pth'
            self.size = last.stat().st_size
            self.whole[ranks] = state_of(read_checkpoint(str(last)))
        return self.whole[ranks]

    def run(self, kind: str, seed: int) -> Trial | None:
        """Interrupt and resume a run.

        Args:
            kind: One of ``KINDS``.
            seed: Seed of the random point.

        Returns:
            The trial; None if the training ended before the fault.
        """
        rng = random.Random(f'{kind} {seed}')
        trial = Trial(kind, seed)
        ranks = 2 if kind == 'dead rank of two' else 1
        expected = self.compare_with(ranks)
        work_dir = self.root / f'{kind} {seed}'
        logs = [self.root / f'{kind} {seed} {turn}.log' for turn in (1, 2)]
        full = kind == 'full disk'
        size = int(rng.uniform(0.3, LENGTH / INTERVAL) * self.size)
        with small_disk(work_dir, size) if full else nullcontext():
            process = start(self.main, work_dir, logs[0], ranks)
            struck = strike(kind, process, logs[0], rng)
            trial.code = finish(process)
            if not struck:
                shutil.rmtree(work_dir, ignore_errors=True)
                return None
            trial.broken = sum(not _is_sound(path) for path in work_dir.glob('*.pth'))
            if full:
                more = f'remount,size={20 * self.size}'
                subprocess.run(['mount', '-o', more, str(work_dir)], check=True)
            code = finish(start(self.main, work_dir, logs[1], ranks))
            self._judge(trial, code, expected, work_dir, [log.read_text() for log in logs])
        shutil.rmtree(work_dir)
        return trial

    def _judge(
        self,
        trial: Trial,
        code: int | None,
        expected: dict[str, Tensor],
        work_dir: Path,
        printed: list[str],
    ) -> None:
        reached = re.findall(rf'Iter\(train\)\s*\[\s*(\d+)/{LENGTH}\]', printed[0])
        resumed = re.findall(r'resumed epoch: 0, iter: (\d+)', printed[1])
        trial.reached = int(reached[-1]) if reached else 0
        trial.resumed = int(resumed[-1]) if resumed else 0
        if trial.code is None:
            trial.problem = 'the training hung after the fault'
        elif code != 0:
            trial.problem = f'--resume ended with {code}: {printed[1][-2000:]}'
        elif trial.lost > INTERVAL:
            trial.problem = f'{trial.lost} iterations were lost'
        elif trial.broken:
            trial.problem = f'{trial.broken} checkpoints were broken'
        else:
            found = state_of(read_checkpoint(str(work_dir / f'iter_{LENGTH}.pth')))
            if found.keys() != expected.keys():
                trial.problem = 'the checkpoint has other entries'
            differing = [name for name in found if not torch.equal(found[name], expected[name])]
            if differing:
                trial.problem = f'{len(differing)} entries differ, the first is {differing[0]}'


def _is_sound(path: Path) -> bool:
    try:
        read_checkpoint(str(path))
    except (ValueError, OSError):
        return False
    return True


def table(trials: Sequence[Trial]) -> str:
    """Format trials as a table with a row per fault.

    Args:
        trials: All of them.
    """
    lines = [
        '| fault | injected | resumed, equal bit for bit | exit codes | iterations lost: mean, '
        f'largest (checkpoints every {INTERVAL}) | broken checkpoints |',
        '|---|---|---|---|---|---|',
    ]
    for kind in dict.fromkeys(trial.kind for trial in trials):
        own = [trial for trial in trials if trial.kind == kind]
        lost = [trial.lost for trial in own]
        codes = ', '.join(sorted({str(trial.code) for trial in own}))
        lines.append(
            f'| {kind} | {len(own)} | {sum(not trial.problem for trial in own)} | {codes} | '
            f'{sum(lost) / len(own):.1f}, {max(lost)} | {sum(trial.broken for trial in own)} |'
        )
    return '\n'.join(lines)


def main() -> None:
    """Run the trials and exit with the problems."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--times', type=int, default=20, help='trials of each fault')
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=KINDS)
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of the points at which faults are injected'
    )
    parser.add_argument(
        '--out', type=Path, help='file to which one JSON line per trial is appended'
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    register_all_modules()  # imported once, before the forks
    done: list[Trial] = []
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        Path('config.py').write_text(CONFIG)
        build(Path('data/digit_scenes'), DigitSceneParams(train=16, val=4))
        trials = Trials(Path(folder))
        for round_number in range(args.times):
            for kind in args.kinds:
                seed = 1000 * args.seed + 50 * round_number
                done += _inject(trials, kind, seed, args.out)
    print(table(done))
    problems = [f'{trial.kind} {trial.seed}: {trial.problem}' for trial in done if trial.problem]
    if problems:
        sys.exit('\n'.join(problems))


def _inject(trials: Trials, kind: str, seed: int, out: Path | None) -> list[Trial]:
    """Run one trial; if the training ends before the random point, draw another point.

    If this user cannot inject the fault, the list is empty.
    """
    try:
        trial = trials.run(kind, seed)
        while trial is None:
            seed += 1
            trial = trials.run(kind, seed)
    except PermissionError as error:
        print(f'{kind}: left out, {error}', flush=True)
        return []
    line = json.dumps(asdict(trial))
    print(line, flush=True)
    if out:
        with open(out, 'a') as file:
            file.write(f'{line}\n')
    return [trial]


if __name__ == '__main__':
    main()
