# SPDX-License-Identifier: Apache-2.0
"""Logs that MMEngine's runner wrote, including those of resumed runs."""

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
        train: Values logged in training (``loss``, ``lr``, ``time``, ...) by step.
        val: Values logged in validation (``coco/bbox_mAP``, ...) by step.
    """

    train: Scalars = field(default_factory=dict)
    val: Scalars = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Wall time of the training iterations, without validation and start-up."""
        steps = sorted(self.train)
        spans = (b - a for a, b in zip([0, *steps], steps, strict=False))
        return sum(
            span * self.train[step]['time'] for span, step in zip(spans, steps, strict=True)
        )


def read_run_log(work_dir: str | Path) -> RunLog:
    """Read ``*/vis_data/scalars.json``. If a resumed run repeats a step, the later values count.

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
            f'{work_dir} contains no training log (*/vis_data/scalars.json with a loss, '
            'written every default_hooks.logger.interval iterations)'
        )
    return log


class Tested(NamedTuple):
    """Metrics of one run of ``tools/test.py``, and whether it used ``--tta``."""

    metrics: dict[str, float]
    is_multi_scale: bool


def read_tests(work_dir: str | Path) -> list[Tested]:
    """Read the metrics that ``tools/test.py`` wrote to a work directory.

    Args:
        work_dir: Work directory of the test, ``--work-dir``.

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
