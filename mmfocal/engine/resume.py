# SPDX-License-Identifier: Apache-2.0
"""Go on after a kill, also one in the middle of a write or of the last validation."""

from pathlib import Path
from zipfile import is_zipfile

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

_PATTERNS = ('iter_*.pth', 'epoch_*.pth')


def latest_checkpoint(work_dir: str | Path) -> str | None:
    """Return the newest complete checkpoint of a work directory.

    MMEngine's ``last_checkpoint`` may name a file that is already deleted (``max_keep_ckpts=1``),
    and a kill during a write leaves a truncated file. PyTorch writes zip archives, whose directory
    is at the end, so that a truncated one is told by its missing end.

    Args:
        work_dir: Directory of a training run.

    Returns:
        Path of the newest complete ``iter_*.pth`` or ``epoch_*.pth``, or None if there is none.
    """
    files = [path for pattern in _PATTERNS for path in Path(work_dir).glob(pattern)]
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        if is_zipfile(path):
            return str(path)
        print_log(f'{path} is incomplete (interrupted while it was written?) and is skipped.')
    return None


class ValidateFinished(Hook):
    """Validate when a resumed training has nothing left to train.

    The last checkpoint is written before the last validation, and MMEngine validates only after
    training something: a kill in between would leave a run without its result.
    """

    def before_train(self, runner: Runner) -> None:
        """See whether the training was complete already.

        Args:
            runner: The runner, resumed.
        """
        self.finished = runner.iter >= runner.max_iters or runner.epoch >= runner.max_epochs

    def after_train(self, runner: Runner) -> None:
        """Validate if it was, and if the config has a validation.

        Args:
            runner: The runner.
        """
        if self.finished and runner.val_loop is not None:
            runner.logger.info('Nothing was left to train: validating.')
            runner.val_loop.run()
