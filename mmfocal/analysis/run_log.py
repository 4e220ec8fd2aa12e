# SPDX-License-Identifier: Apache-2.0
"""What MMEngine's runner wrote about a run, over all its interruptions."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

Scalars = dict[int, dict[str, float]]


@dataclass
class RunLog:
    """Scalars of one work directory.

    Attributes:
        train: Per step what training logged (``loss``, ``lr``, ``time``, ...).
        val: Per step what validation logged (``coco/bbox_mAP``, ...).
    """

    train: Scalars = field(default_factory=dict)
    val: Scalars = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Wall time of the training iterations, validation and start-up apart."""
        steps = sorted(self.train)
        spans = (b - a for a, b in zip([0, *steps], steps, strict=False))
        return sum(
            span * self.train[step]['time'] for span, step in zip(spans, steps, strict=True)
        )


def read_run_log(work_dir: str | Path) -> RunLog:
    """Read ``*/vis_data/scalars.json``; where a resumed run repeats steps, the later one counts.

    Args:
        work_dir: Work directory of ``tools/train.py``.

    Raises:
        FileNotFoundError: If nothing was logged there.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    log = RunLog()
    for file in files:
        for line in file.read_text().splitlines():
            scalars = json.loads(line)
            (log.train if 'lr' in scalars else log.val)[scalars['step']] = scalars
    if not log.train:
        raise FileNotFoundError(
            f'{work_dir} holds no log of a training (*/vis_data/scalars.json with a loss, '
            'written every default_hooks.logger.interval iterations)'
        )
    return log


class Tested(NamedTuple):
    """What one run of ``tools/test.py`` measured, and whether with ``--tta``."""

    metrics: dict[str, float]
    is_multi_scale: bool


def read_tests(work_dir: str | Path) -> list[Tested]:
    """Read what ``tools/test.py`` left in a work directory.

    Args:
        work_dir: Its ``--work-dir``.

    Returns:
        One entry per test, oldest first; empty if there is none.
    """
    found = []
    for file in sorted(Path(work_dir).glob('*/*.json')):
        config = file.parent / 'vis_data' / 'config.py'
        if file.stem == file.parent.name and config.exists():
            model = Config.fromfile(config, import_custom_modules=False).model
            found.append(Tested(json.loads(file.read_text()), 'module' in model))
    return found
