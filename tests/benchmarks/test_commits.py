# SPDX-License-Identifier: Apache-2.0
"""An older commit and this tree take turns."""

import subprocess
from pathlib import Path

import commits
import measure
import pytest

ROOT = Path(__file__).resolve().parents[2]


def _worktrees() -> str:
    return subprocess.check_output(['git', 'worktree', 'list'], cwd=ROOT, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / '.git').exists(), reason='needs the history of the repository')
def test_measures_both_trees_and_leaves_none(tmp_path, read_rows):
    before, csv = _worktrees(), tmp_path / 'commits.csv'
    command = ['HEAD', '--model', 'focal_nano', '--sizes', '32x32x1', '--modes', 'infer']
    commits.main([*command, '--rounds', '1', '--csv', str(csv)])
    (row,) = read_rows(csv)
    for name in ('old', 'new', 'baseline'):
        assert float(row[f'{name}_ms']) > 0
        assert float(row[f'{name}_mib']) > 0
        assert float(row[f'{name}_allocated_mib']) > 0
    assert float(row['allocated_new_to_old']) == 1  # the trees are equal
    ratio = float(row['new_ms']) / float(row['old_ms'])
    assert float(row['time_new_to_old']) == pytest.approx(ratio, rel=1e-4)
    assert _worktrees() == before


def test_a_worker_never_measures_another_tree(tmp_path):
    """A tree without the benchmark must not fall back to the installed package."""
    size = measure.Size(32, 32, 1)
    with (
        commits.Worker(tmp_path, 'focal_nano', 'auto', 'infer', size, 1) as worker,
        pytest.raises(RuntimeError, match='exit status 1'),
    ):
        worker.ask(1)
