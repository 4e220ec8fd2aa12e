# SPDX-License-Identifier: Apache-2.0
"""Losses of a training reach TensorBoard, W&B and MLflow; the oldest stack has all three."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmfocal.datasets.digit_scenes import DigitSceneParams, build

pytest.importorskip('mmpretrain')

CONFIG = """
_base_ = {base!r}
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type={backend!r})])
param_scheduler = []
train_cfg = dict(max_iters=2, val_interval=2)
train_dataloader = dict(batch_size=2)
val_dataloader = dict(dataset=dict(indices=4))
default_hooks = dict(logger=dict(interval=1))
"""


def read_tensorboard(run: Path) -> int:
    """Return how many losses were logged."""
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulator.EventAccumulator(str(run))
    events.Reload()
    return len(events.Scalars('loss'))


def read_wandb(run: Path) -> int:
    (file,) = run.glob('wandb/offline-run-*/*.wandb')
    # W&B has no public reader: field 16 of an item is its value, and the summary repeats it
    return len(set(re.findall(rb'loss\x82\x01.([0-9.]+)', file.read_bytes())))


def read_mlflow(run: Path) -> int:
    (file,) = run.glob('*/*/metrics/loss')
    return len(file.read_text().splitlines())


@pytest.mark.parametrize(
    ('package', 'backend', 'read'),
    [
        ('tensorboard', 'TensorboardVisBackend', read_tensorboard),
        ('wandb', 'WandbVisBackend', read_wandb),
        ('mlflow', 'MLflowVisBackend', read_mlflow),
    ],
)
def test_losses_are_logged(tmp_path, repo_root, package, backend, read):
    pytest.importorskip(package)
    build(tmp_path / 'data' / 'digit_scenes', DigitSceneParams(train=2, val=1, crop_views=1))
    base = str(repo_root / 'configs' / 'quickstart' / 'focal_nano_cls.py')
    (tmp_path / 'config.py').write_text(CONFIG.format(base=base, backend=backend))
    train = [sys.executable, str(repo_root / 'tools' / 'train.py')]
    path = os.pathsep.join([str(repo_root), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run(
        [*train, 'config.py', '--work-dir', 'run'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': path, 'WANDB_MODE': 'offline'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (run,) = (tmp_path / 'run').glob('*/vis_data')
    assert read(run) == 2
