# SPDX-License-Identifier: Apache-2.0
"""Two processes: different random numbers, one end on SIGTERM, equal weights after resuming."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from mmfocal.engine import latest_checkpoint
from tests.helpers.processes import run_in_processes
from tests.helpers.toy_training import differing, train


class EndRank(Hook):
    """One process alone gets the signal."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.rank == self.rank and runner.iter + 1 == 3:
            os.kill(os.getpid(), signal.SIGTERM)


class Draw(Hook):
    """Keep what each iteration draws and loads."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.drawn = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        with torch.random.fork_rng():  # the step draws the same
            drawn = torch.rand(()).item()
        self.drawn.append((drawn, data_batch['inputs'].flatten().tolist()))


class Wait(Hook):
    """Slow iterations."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        time.sleep(0.6)


def body(rank: int, folder: Path) -> None:
    options = dict(launcher='pytorch', cfg_wrapper=True)
    draw = Draw()
    train(folder / 'whole', 12, hooks=(draw,), **options)
    torch.save(draw.drawn, folder / f'drawn{rank}.pt')
    for name, more in (('ended', ()), ('slow', (Wait(),))):
        try:
            train(folder / name, 12, hooks=(EndRank(1), *more), **options)
        except SystemExit as ended:
            assert ended.code == 143
        else:
            raise AssertionError('the signal had no effect')
        torch.distributed.barrier()
    train(folder / 'ended', 12, resume=latest_checkpoint(folder / 'ended'), **options)


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(tmp_path):
    run_in_processes(body, tmp_path, tmp_path)
    first, second = (torch.load(tmp_path / f'drawn{rank}.pt') for rank in (0, 1))
    assert len(first) == 12
    for (one, batch), (two, other) in zip(first, second, strict=True):
        assert one != two and batch != other
    assert (tmp_path / 'ended' / 'last_checkpoint').read_text().endswith('iter_12.pth')
    assert not differing(tmp_path / 'whole' / 'iter_12.pth', tmp_path / 'ended' / 'iter_12.pth')
    # thirty seconds after SIGTERM, torchrun and slurm kill: slow iterations are not waited for
    assert latest_checkpoint(tmp_path / 'slow') == str(tmp_path / 'slow' / 'iter_3.pth')
