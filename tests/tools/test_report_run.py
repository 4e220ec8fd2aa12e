# SPDX-License-Identifier: Apache-2.0
"""The report of a finished run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    """Log of a run of 20 iterations with one validation."""
    lines = [
        dict(step=10, lr=1.0, loss=3.0, time=6.0),
        dict(step=20, lr=1.0, loss=2.0, time=6.0),
        {'step': 20, 'coco/bbox_mAP': 0.4567, 'coco/segm_mAP': 0.3},
    ]
    folder = tmp_path / 'some_run' / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    return tmp_path / 'some_run'


def report(repo_root: Path, *args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, repo_root / 'tools/analysis/report_run.py', *args]
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)


def test_table_and_curves(work_dir: Path, repo_root: Path) -> None:
    result = report(repo_root, work_dir)
    assert result.returncode == 0, result.stderr
    header, _, row = (work_dir / 'results.md').read_text().splitlines()
    assert header == '| run | iterations | minutes | last loss | validated at | box AP | mask AP |'
    assert row == '| some_run | 20 | 2.0 | 2.000 at 20 | iteration 20 | 0.457 | 0.300 |'
    assert (work_dir / 'curves.png').stat().st_size > 0
    assert '0.457' in result.stdout
    assert str(work_dir / 'curves.png') in result.stdout.replace('\n', '')
    assert 'replaced' not in result.stdout


def test_two_runs_of_one_name_are_refused(work_dir: Path, repo_root: Path) -> None:
    """One of them would be missing in the table."""
    result = report(repo_root, work_dir, work_dir)
    assert result.returncode == 2 and 'two runs have one name: some_run some_run' in result.stderr
    result = report(repo_root, work_dir, work_dir, '--names', 'a', 'b')
    assert result.returncode == 0, result.stderr
    rows = (work_dir / 'results.md').read_text().splitlines()[2:]
    assert [row[:4] for row in rows] == ['| a ', '| b ']


def append(work_dir: Path, **scalars: float) -> None:
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    path.write_text(path.read_text() + '\n' + json.dumps(scalars))


def test_an_older_validation_is_told(work_dir: Path, repo_root: Path) -> None:
    append(work_dir, step=30, lr=1.0, loss=1.0, time=6.0)
    (work_dir / 'results.md').touch()
    result = report(repo_root, work_dir)
    assert result.returncode == 0
    assert f'{work_dir}/results.md exists and is replaced' in result.stdout
    row = (work_dir / 'results.md').read_text().splitlines()[-1]
    assert row == '| some_run | 30 | 3.0 | 1.000 at 30 | iteration 20 | 0.457 | 0.300 |'


def test_the_last_iteration_counts_even_if_its_loss_is_not_logged(
    work_dir: Path, repo_root: Path
) -> None:
    append(work_dir, **{'step': 25, 'coco/bbox_mAP': 0.5, 'coco/segm_mAP': 0.4})
    assert report(repo_root, work_dir).returncode == 0
    row = (work_dir / 'results.md').read_text().splitlines()[-1]
    assert row == '| some_run | 25 | 2.0 | 2.000 at 20 | iteration 25 | 0.500 | 0.400 |'


def test_epochs_are_told_from_iterations(work_dir: Path, repo_root: Path) -> None:
    append(work_dir, step=30, epoch=30, lr=1.0, loss=1.0, time=6.0)
    append(work_dir, **{'step': 40, 'coco/bbox_mAP': 0.5})
    assert report(repo_root, work_dir).returncode == 0
    row = (work_dir / 'results.md').read_text().splitlines()[-1]
    assert row.startswith('| some_run | 30 |') and '| epoch 40 |' in row


def test_predictions_need_the_runs_config_and_take_the_newest(
    work_dir: Path, repo_root: Path
) -> None:
    predictions = work_dir / 'a.segm.json'
    predictions.write_text('[]')
    arguments = (work_dir, '--predictions', predictions)
    error = report(repo_root, *arguments).stderr
    assert f'error: --predictions: {work_dir} holds no config' in error
    dataset = "dict(data_root={!r}, ann_file='a', data_prefix=dict(img=''))"
    config = f'val_dataloader = dict(dataset={dataset})'
    for age, name in enumerate(('new', 'old')):
        path = work_dir / f'{name}.py'
        path.write_text(config.format(f'{name}_data'))
        os.utime(path, (1000 - age, 1000 - age))
    assert "No such file or directory: 'new_data/a'" in report(repo_root, *arguments).stderr


def test_no_log(tmp_path: Path, repo_root: Path) -> None:
    assert 'contains no training log' in report(repo_root, tmp_path).stderr
