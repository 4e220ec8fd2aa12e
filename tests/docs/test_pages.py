# SPDX-License-Identifier: Apache-2.0
"""Pages do what they say: their commands run from the page itself, on less data and shortened."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from sybil import Document, Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from mmfocal.datasets.digit_scenes import DigitSceneParams, build
from mmfocal.models.pretrained import read_checkpoint

SHORTER = {
    'make_digit_scenes.py': '--train 16 --val 4',
    'mmfocal train': '--cfg-options train_cfg.max_iters={} train_cfg.val_interval=2 '
    'default_hooks.checkpoint.interval=1 default_hooks.logger.interval=1',
}


class Shell:
    """Runs shell blocks in the current folder; trainings do a few steps, resumed ones two more."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.shorter = dict(SHORTER)
        self.printed: list[str] = []

    def __call__(self, example: Example) -> None:
        for command in example.parsed.replace('\\\n', ' ').splitlines():
            for beginning, options in self.shorter.items():
                if beginning in command:
                    command += ' ' + options.format(4 if '--resume' in command else 2)
            done = subprocess.run(
                ['bash', '-euo', 'pipefail', '-c', command],
                env=self.environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            assert done.returncode == 0, f'{command}\n{done.stdout[-3000:]}'
            self.printed.append(done.stdout)


@pytest.fixture(scope='session')
def digit_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages' first command makes, so that it finds it there."""
    root = tmp_path_factory.mktemp('scenes') / 'digit_scenes'
    build(root, DigitSceneParams(train=16, val=4))
    return root


@pytest.fixture
def shell(
    tmp_path: Path, repo_root: Path, digit_scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> Shell:
    """A shell in a folder that looks like the checkout, with ``mmfocal`` and ``python``."""
    monkeypatch.chdir(tmp_path)
    for name in ('tools', 'configs'):
        (tmp_path / name).symlink_to(repo_root / name)
    (tmp_path / 'data').mkdir()
    shutil.copytree(digit_scenes, tmp_path / 'data/digit_scenes')
    commands = tmp_path / 'bin'
    commands.mkdir()
    for name, arguments in dict(python='', mmfocal='-m mmfocal.cli ').items():
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments}"$@"\n')
        (commands / name).chmod(0o755)
    path = f'{commands}{os.pathsep}{os.environ["PATH"]}'
    return Shell(
        {**os.environ, 'PATH': path, 'PYTHONPATH': str(repo_root), 'OMP_NUM_THREADS': '1'}
    )


def follow(page: Path, shell: Shell) -> str:
    """Run every block of a page in order; return what the commands printed."""
    parsers = [CodeBlockParser('shell', shell), CodeBlockParser('python', PythonEvaluator())]
    document: Document = Sybil(parsers, path=str(page.parent)).parse(page)
    examples = list(document.examples())
    assert len(examples) == page.read_text().count('\n```shell') + page.read_text().count(
        '\n```python'
    )
    for example in examples:
        example.evaluate()
    return '\n'.join(shell.printed)


def is_picture(path: Path) -> bool:
    """Whether a file is a picture with something in it."""
    return len(np.unique(cv2.imread(str(path)).reshape(-1, 3), axis=0)) > 20


@pytest.mark.slow
def test_detection(shell, repo_root):
    # after a few steps no box may be good enough to be evaluated
    shell.shorter['mmfocal test'] = '--cfg-options model.test_cfg.rcnn.score_thr=0'
    printed = follow(repo_root / 'docs/own_data_detection.md', shell)
    assert 'it passes the checks before training' in printed
    assert re.search(r'\| zero +\|', printed) and '| three ' not in printed  # AP of each class
    cfg = Config.fromfile('my_detector.py')
    assert cfg.model.roi_head.mask_head.num_classes == 3
    assert Path('work_dirs/my_detector/iter_4.pth').exists()  # resumed after 2
    assert len(list(Path('looked_at').rglob('*.png'))) == 8
    for picture in ('confusion/confusion_matrix.png', 'found.png', 'found/vis/000003.png'):
        assert is_picture(Path(picture)), picture
    ranked = list(Path('best_and_worst').glob('*/*.png'))  # of good and bad
    assert len(ranked) == 4 and all(map(is_picture, ranked))
    assert is_picture(Path('work_dirs/my_detector/curves.png'))
    found = [json.loads(path.read_text()) for path in Path('found/preds').glob('*.json')]
    assert len(found) == 4
    assert all(set(result['classes']) <= {'zero', 'one', 'two'} for result in found)


@pytest.mark.slow
def test_segmentation(shell, repo_root):
    printed = follow(repo_root / 'docs/own_data_segmentation.md', shell)
    assert 'it passes the checks before training' in printed
    assert re.search(r'\| +ground +\|', printed) and ' three ' not in printed  # IoU of each class
    assert Path('work_dirs/my_segmentor/iter_4.pth').exists()
    for picture in ('confusion.png', 'found.png', 'found/vis/000003.png'):
        assert is_picture(Path(picture)), picture
    assert len(list(Path('label_maps').glob('*.png'))) == 4
    labels = cv2.imread('found/preds/000000.png', cv2.IMREAD_UNCHANGED)
    result = json.loads(Path('found/preds/000000.json').read_text())
    assert labels.shape == (160, 160) and np.unique(labels).tolist() == result['labels']
    assert set(result['classes']) <= {'ground', 'zero', 'one', 'two'}


@pytest.mark.slow
def test_classification(shell, repo_root):
    printed = follow(repo_root / 'docs/own_data_classification.md', shell)
    assert 'it passes the checks before training' in printed and 'accuracy/top1' in printed
    assert Path('work_dirs/my_classifier/iter_4.pth').exists()
    assert is_picture(Path('confusion.png'))
    assert len(list(Path('looked_at').rglob('*.*'))) >= 8
    assert list(Path('best_and_worst').rglob('*.png'))
    results = sorted(Path('found/preds').glob('*.json'))
    assert len(results) == len(list(Path('data/three_folders/val/one').iterdir()))
    assert json.loads(results[0].read_text())['class_name'] in ('zero', 'one', 'two')


@pytest.mark.slow
def test_recipes(shell, repo_root):
    blocks = re.findall(r'```python\n(.+?)```', (repo_root / 'docs/recipes.md').read_text(), re.S)
    base = "_base_ = __import__('mmfocal').config('quickstart/focal_nano_maskrcnn')"
    for index, block in enumerate(blocks):  # each has the one before as its base
        name = 'recipes.py' if index == len(blocks) - 1 else f'recipe_{index}.py'
        Path(name).write_text(f'{base}\n{block}')
        base = f"_base_ = '{name}'"
    command = 'mmfocal train recipes.py'
    document = Sybil([CodeBlockParser('shell', shell)], path='.').parse(
        _page(f'```shell\n{command}\n```\n')
    )
    for example in document.examples():
        example.evaluate()
    checkpoint = read_checkpoint('work_dirs/recipes/iter_2.pth')
    assert checkpoint['ema_state_dict']['steps'] == 2
    hooks = Path(next(Path('work_dirs/recipes').rglob('*.log'))).read_text()
    assert 'EarlyStoppingHook' in hooks
    (settings, *_) = [line for line in hooks.splitlines() if 'from the stem to the heads' in line]
    rates = [float(rate) for rate in settings.rpartition(': ')[2].split(', ')]
    assert rates[-1] == pytest.approx(rates[-2] / 0.9, rel=0.01)
    assert len(rates) == 8 - 1  # the stem and the two blocks of the first stage are frozen
    assert list(Path('work_dirs/recipes').rglob('events.out.tfevents*'))
    cfg = Config.fromfile('recipes.py')
    assert cfg.model.backbone.with_cp and cfg.optim_wrapper.accumulative_counts == 4


def _page(text: str) -> Path:
    Path('page.md').write_text(text)
    return Path('page.md')
