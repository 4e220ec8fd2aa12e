# SPDX-License-Identifier: Apache-2.0
"""Trainings of the nano classifier: deterministic ones repeat, and a NaN names its images."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.helpers.toy_training import differing

HOOKS = """
import json

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Record(Hook):
    '''Images and the mode of each step.'''

    def before_train(self, runner):
        self.steps = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        images = [sample.img_path for sample in data_batch['data_samples']]
        self.steps.append([images, torch.are_deterministic_algorithms_enabled()])
        with open(f'{runner.work_dir}/steps.json', 'w') as file:
            json.dump(self.steps, file)


@HOOKS.register_module()
class Overflow(Hook):
    '''The last norm exceeds float32 from an iteration on.'''

    def __init__(self, start):
        self.start = start

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.start:
            runner.model.backbone.norm3.weight.data.fill_(3e38)
"""
CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['mmfocal', 'numerics_hooks'], allow_failed_imports=False)
custom_hooks = [dict(type='Record'), dict(type='Overflow', start=99), dict(type='EMAHook')]
model = dict(backbone=dict(drop_path_rate=0.3))
train_cfg = dict(max_iters=3)
train_dataloader = dict(batch_size=4)
val_cfg = val_dataloader = val_evaluator = None
randomness = dict(seed=7, deterministic=True)
"""
DRIVER = """
import sys
from pathlib import Path
from runpy import run_path

main = run_path(sys.argv[1])['main']
for name, *options in {runs!r}:
    settings = ['train_dataloader.num_workers=0', *options]
    try:
        main(['config.py', '--work-dir', name, '--cfg-options', *settings])
    except FloatingPointError as error:
        Path(name, 'error.txt').write_text(str(error))
"""
RUNS = (
    ['first'],
    ['again', 'train_dataloader.num_workers=2'],
    ['seed', 'randomness.seed=8'],
    ['overflow', 'custom_hooks.1.start=1'],
)


def test_deterministic_training_repeats_and_a_nan_names_its_images(
    workspace: Path, repo_root: Path, environment: dict[str, str]
) -> None:
    base = str(repo_root / 'configs' / 'quickstart' / 'focal_nano_cls.py')
    (workspace / 'numerics_hooks.py').write_text(HOOKS)
    (workspace / 'config.py').write_text(CONFIG.format(base=base))
    (workspace / 'driver.py').write_text(DRIVER.format(runs=RUNS))
    command = [sys.executable, 'driver.py', str(repo_root / 'tools' / 'train.py')]
    subprocess.run(command, cwd=workspace, env=environment, check=True, timeout=600)

    names = [name for name, *_ in RUNS]
    steps = {name: json.loads((workspace / name / 'steps.json').read_text()) for name in names}
    assert all(deterministic for found in steps.values() for _, deterministic in found)
    weights = {name: workspace / name / 'iter_3.pth' for name in names}
    assert steps['again'] == steps['first']
    assert not differing(weights['first'], weights['again'])
    assert differing(weights['first'], weights['seed'])

    error = (workspace / 'overflow' / 'error.txt').read_text()
    told = re.fullmatch(
        r'iteration 2: the loss is (?:nan|inf)\. The first tensor that is not finite: '
        r'output of backbone\.norm3 \(LayerNorm\)\. Images: (.*)',
        error,
    )
    assert told, error
    images = steps['overflow'][1][0]
    assert told[1].split(', ') == images and len(set(images)) == 4
    assert all(Path(workspace, image).is_file() for image in images)
    assert not weights['overflow'].exists()
