# SPDX-License-Identifier: Apache-2.0
"""The README's first command, all of it but the set-up (about 8 minutes on 2 cores)."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.pictures import is_drawn_on, is_picture, read


def quickstart(repo_root: Path, work_dirs: Path) -> str:
    env = {**os.environ, 'WORK_DIRS': str(work_dirs)}
    env.pop('OMP_NUM_THREADS', None)  # the tests' choice, not a user's
    done = subprocess.run(
        ['bash', str(repo_root / 'tools/quickstart.sh')],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_quickstart_learns_and_is_reused(repo_root: Path, tmp_path: Path) -> None:
    if not (repo_root / '.venv/.mmfocal-ready').exists():
        pytest.skip('would set up a second environment: run tools/run_tests.sh')
    quickstart(repo_root, tmp_path)
    run = tmp_path / 'focal_nano_maskrcnn_seed0'
    header, _, row = (
        line.strip('| \n').split(' | ') for line in (run / 'results.md').open().readlines()
    )
    results = dict(zip(header, row, strict=True))
    # Three seeds reached at least 0.05 more. A fault costs more than that, chance less.
    assert float(results['box AP']) >= 0.46, results
    assert float(results['mask AP']) >= 0.41, results
    for name in ('curves.png', 'predictions.png'):
        assert is_picture(run / name), name
    scene = read(repo_root / 'data/digit_scenes/val/000004.png')
    assert is_drawn_on(read(run / 'predicted/vis/000004.png'), scene)
    assert 'already trained' in quickstart(repo_root, tmp_path)
