# SPDX-License-Identifier: Apache-2.0
"""Find the checkpoint to go on from, also after a kill in the middle of a write."""

from pathlib import Path
from zipfile import is_zipfile

from mmengine.logging import print_log

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
