# SPDX-License-Identifier: Apache-2.0
"""The README's first command, all of it but the set-up (about 8 minutes on 2 cores)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mmfocal.engine import load_config
from tests.helpers.pictures import is_drawn_on, is_picture, read
from tools.train import make_parser


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


def test_paths_of_any_characters_arrive(repo_root: Path, tmp_path: Path) -> None:
    """The script in a folder of its own, with a program that writes down its commands."""
    root = tmp_path / """it's "one"; $HOME, & (more)"""
    (root / 'tools').mkdir(parents=True)
    for name in ('quickstart.sh', 'dist_train.sh', 'dist_common.sh', 'keep_memory.sh'):
        shutil.copy(repo_root / 'tools' / name, root / 'tools')
    (root / 'tools/setup_env.sh').touch()
    program = root / '.venv/bin/python'
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s\\0" "$@" "" >> commands\n')
    program.chmod(0o755)
    odd = """my runs, lr=1e-4; it's "two" [x]"""
    env = {**os.environ, 'WORK_DIRS': odd, 'PORT': '1234'}
    done = subprocess.run(['bash', 'tools/quickstart.sh', '7'], cwd=root, env=env)
    assert done.returncode == 0
    text = (root / 'commands').read_text()
    commands = [each.split('\0') for each in text.rstrip('\0').split('\0\0')]
    data, training, report, prediction = commands
    work_dir = f'{odd}/focal_nano_maskrcnn_seed7'
    start = training.index(f'{root}/tools/train.py') + 1
    args = make_parser().parse_args([str(repo_root / training[start]), *training[start + 1 :]])
    args.launcher = 'none'
    cfg = load_config(args)
    assert args.resume == 'auto' and cfg.randomness.seed == 7
    assert cfg.work_dir == work_dir
    assert cfg.val_evaluator.outfile_prefix == f'{work_dir}/predictions'
    assert data[0].endswith('make_digit_scenes.py')
    assert {work_dir, f'{work_dir}/predictions.segm.json'} < set(report)
    assert {work_dir, f'{work_dir}/predicted'} < set(prediction)
