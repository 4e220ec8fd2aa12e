# SPDX-License-Identifier: Apache-2.0
"""What MMEngine's runner wrote about a run, over all its interruptions."""

import json
from dataclasses import dataclass, field
from pathlib import Path

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
