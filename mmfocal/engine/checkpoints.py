# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that survive a kill, and an additional one when the run receives SIGTERM."""

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from mmfocal.compat import check_base

check_base(CheckpointHook)
# several processes check whether one received the signal at least this often
_SECONDS, _ITERATIONS = 0.5, 10


class SafeCheckpointHook(CheckpointHook):
    """MMEngine's hook with a safe order: write, update ``last_checkpoint``, delete old files.

    MMEngine deletes first. A kill can then leave no checkpoint with ``max_keep_ckpts=1``, and
    ``last_checkpoint`` names a deleted file.
    """

    place: dict[str, int] | None = None  # epoch and iteration of an additional checkpoint

    def before_train(self, runner: Runner) -> None:
        """Remove incomplete files of an earlier, killed run.

        Args:
            runner: The runner.
        """
        super().before_train(runner)
        if is_main_process() and os.path.isdir(self.out_dir):
            for path in Path(self.out_dir).glob('.*.pth.*.tmp'):
                path.unlink(missing_ok=True)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore epoch and iteration of an additional checkpoint; FlexibleRunner overwrites them.

        Args:
            runner: The runner.
            checkpoint: Content to be saved.
        """
        checkpoint['meta'].update(self.place or {})

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = self._register(runner, step)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            point_to(runner.work_dir, self.last_ckpt)
            for old in outdated:
                self._remove(self.filename_tmpl.format(old))

    def _register(self, runner: Runner, step: int) -> list[int]:
        """Record a checkpoint; return the steps of outdated ones."""
        if self.max_keep_ckpts <= 0 or (self.keep_ckpt_ids and self.keep_ckpt_ids[-1] == step):
            return []
        outdated = []
        while len(self.keep_ckpt_ids) >= self.max_keep_ckpts:
            outdated.append(self.keep_ckpt_ids.popleft())
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        return outdated

    def _remove(self, name: str) -> None:
        path = self.file_backend.join_path(self.out_dir, name)
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # DeepSpeed's
            self.file_backend.rmtree(path)

    def save_now(self, runner: Runner, epoch: int, iteration: int) -> str:
        """Save an additional checkpoint.

        Args:
            runner: The runner.
            epoch: Completed epochs.
            iteration: Completed iterations.

        Returns:
            Path of the checkpoint.
        """
        name = f'iter_{iteration}.pth'
        path = self.file_backend.join_path(self.out_dir, name)
        if self.last_ckpt == path and not self.by_epoch:
            return path  # the regular hook has just written it
        self.place = dict(epoch=epoch, iter=iteration)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            meta=dict(self.place),
            by_epoch=False,
            backend_args=self.backend_args,
        )
        self.place = None
        if is_main_process():
            point_to(runner.work_dir, path)
        return path


def point_to(work_dir: str, checkpoint: str) -> None:
    """Update ``last_checkpoint`` atomically.

    Args:
        work_dir: Directory of the run.
        checkpoint: Path of a complete checkpoint.
    """
    unfinished = Path(work_dir, '.last_checkpoint.tmp')
    unfinished.write_text(checkpoint)
    os.replace(unfinished, Path(work_dir, 'last_checkpoint'))


class SaveOnSignal(Hook):
    """Save a checkpoint and end when the process receives SIGTERM, as before a preemption.

    A second signal ends the process immediately. Several processes must end together, because all
    of them take part in saving sharded models. They synchronize after every iteration of half a
    second or more, and less often, up to every tenth time, after shorter ones.
    """

    priority = 'LOWEST'  # after the regular checkpoint and all hooks that change the weights

    def before_train(self, runner: Runner) -> None:
        """Install the signal handler.

        Args:
            runner: The runner.
        """
        self.asked = False
        self._start_counting()
        self.previous = signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        print('SIGTERM: saving a checkpoint after this iteration', flush=True)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save and end if the signal was received.

        Args:
            runner: The runner.
            batch_idx: Not used.
            data_batch: Not used.
            outputs: Not used.

        Raises:
            SystemExit: If the signal was received.
        """
        if self._all_agree(runner.iter):
            self._end(runner, runner.epoch, runner.iter + 1)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save and end if the signal was received, also during validation.

        Args:
            runner: The runner.
            batch_idx: Index of the batch.
            data_batch: Not used.
            outputs: Not used.

        Raises:
            SystemExit: If the signal was received.
        """
        if batch_idx < self.common and self._all_agree(batch_idx):
            self._end(runner, runner.epoch, runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        """Find out how many batches all processes have; only these can synchronize.

        Args:
            runner: The runner.
        """
        common = torch.tensor(len(runner.val_loop.dataloader))
        all_reduce(common, 'min')
        self.common = int(common)
        self._start_counting()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Resume counting training iterations.

        Args:
            runner: The runner.
            metrics: Not used.
        """
        self._start_counting()

    def after_train(self, runner: Runner) -> None:
        """Restore the previous signal handler.

        Args:
            runner: The runner.
        """
        signal.signal(signal.SIGTERM, self.previous)

    def _start_counting(self) -> None:
        self.next, self.interval, self.since = 0, 1, time.monotonic()

    def _all_agree(self, index: int) -> bool:
        """Return whether any process received the signal; all processes return the same.

        The next iteration to ask at follows from the slowest process, which all of them know.
        """
        if get_world_size() == 1:
            return self.asked
        if index < self.next:
            return False
        now = time.monotonic()
        shared = torch.tensor([float(self.asked), (now - self.since) / self.interval])
        all_reduce(shared, 'max')
        asked, seconds = shared.tolist()
        self.interval = max(1, min(_ITERATIONS, int(_SECONDS / max(seconds, 1e-6))))
        self.next, self.since = index + self.interval, now
        return bool(asked)

    def _end(self, runner: Runner, epoch: int, iteration: int) -> None:
        hooks = [hook for hook in runner.hooks if isinstance(hook, SafeCheckpointHook)]
        if hooks:
            path = hooks[0].save_now(runner, epoch, iteration)
            runner.logger.info(f'Ended by SIGTERM at iteration {iteration}; resume from {path}')
        raise SystemExit(128 + signal.SIGTERM)
