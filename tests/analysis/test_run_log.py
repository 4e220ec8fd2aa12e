# SPDX-License-Identifier: Apache-2.0
"""Reading what the runner logged."""

import json
from pathlib import Path

import pytest

from mmfocal.analysis.run_log import read_run_log


def write_log(work_dir: Path, stamp: str, *lines: dict) -> None:
    file = work_dir / stamp / 'vis_data' / 'scalars.json'
    file.parent.mkdir(parents=True)
    file.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_a_resumed_run_reads_as_one(tmp_path: Path) -> None:
    write_log(
        tmp_path,
        '20260101_000000',
        dict(step=10, lr=1.0, loss=3.0, time=0.5),
        dict(step=20, lr=1.0, loss=2.0, time=0.5),  # lost with the interruption
    )
    write_log(
        tmp_path,
        '20260101_000100',
        dict(step=20, lr=1.0, loss=2.5, time=1.0),
        {'step': 20, 'coco/bbox_mAP': 0.4},
    )
    log = read_run_log(tmp_path)
    assert {step: scalars['loss'] for step, scalars in log.train.items()} == {10: 3.0, 20: 2.5}
    assert log.val == {20: {'step': 20, 'coco/bbox_mAP': 0.4}}
    assert log.seconds == 10 * 0.5 + 10 * 1.0


def test_nothing_logged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='contains no training log'):
        read_run_log(tmp_path)
