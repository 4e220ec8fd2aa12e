# SPDX-License-Identifier: Apache-2.0
"""The launch scripts: two CPU processes that train one model, and the commands they start."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

HOOK = """
import random

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class RecordRank(Hook):
    def before_train(self, runner):
        model = runner.model.module
        self.start = {k: v.clone() for k, v in model.named_parameters()}
        self.draws = torch.rand(1).item(), np.random.rand(), random.random()

        def keep_gradients(*_):
            self.gradients = {k: p.grad.clone() for k, p in model.named_parameters()}

        runner.optim_wrapper.optimizer.register_step_pre_hook(keep_gradients)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        record = dict(
            start=self.start,
            parameters=dict(runner.model.module.named_parameters()),
            gradients=self.gradients,
            draws=self.draws,
            images=[sample.img_path for sample in data_batch['data_samples']],
        )
        torch.save(record, f'rank{get_rank()}.pth')
"""
CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['mmfocal', 'record_rank'], allow_failed_imports=False)
custom_hooks = [dict(type='RecordRank')]
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2))
"""


def test_two_processes_without_a_gpu_keep_one_model(run, workspace, repo_root):
    base = str(repo_root / 'configs' / 'quickstart' / 'focal_nano_maskrcnn.py')
    (workspace / 'record_rank.py').write_text(HOOK)
    (workspace / 'config.py').write_text(CONFIG.format(base=base))
    printed = run('dist_train.sh', 'config.py', 2, '--amp')
    assert printed.count('No GPU: mixed precision') == 1  # once, not once per process
    assert 'coco/bbox_mAP' in printed
    first, second = (
        torch.load(workspace / f'rank{rank}.pth', weights_only=False) for rank in (0, 1)
    )
    assert not set(first['images']) & set(second['images'])
    assert all(a != b for a, b in zip(first['draws'], second['draws'])), 'ranks draw alike'
    for part in ('start', 'parameters', 'gradients'):
        differing = [
            key for key, value in first[part].items() if not value.equal(second[part][key])
        ]
        assert not differing, f'{part} differ between the ranks: {differing[:5]}'
    moved = [
        key for key, value in first['start'].items() if not value.equal(first['parameters'][key])
    ]
    assert len(moved) == len(first['start'])

    checkpoint = 'work_dirs/config/iter_2.pth'
    printed = run('dist_test.sh', 'config.py', checkpoint, 2, '--out', 'found.pkl')
    assert 'coco/segm_mAP' in printed
    assert (workspace / 'found.pkl').stat().st_size > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
def test_nccl_trains_on_a_gpu(run, workspace, repo_root):
    from mmcv.ops import get_compiling_cuda_version

    if get_compiling_cuda_version() == 'not available':
        pytest.skip('mmcv was compiled without CUDA')
    base = str(repo_root / 'configs' / 'quickstart' / 'focal_nano_maskrcnn.py')
    (workspace / 'record_rank.py').write_text(HOOK)
    (workspace / 'config.py').write_text(CONFIG.format(base=base))
    printed = run('dist_train.sh', 'config.py', 1, '--amp')
    assert 'No GPU' not in printed and 'coco/bbox_mAP' in printed
    record = torch.load(workspace / 'rank0.pth', weights_only=False)
    for name, parameter in record['parameters'].items():
        assert parameter.is_cuda and parameter.isfinite().all(), name


@pytest.fixture
def printer(tmp_path: Path) -> Path:
    """Program that prints its arguments, one per line."""
    path = tmp_path / 'srun'
    path.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    path.chmod(0o755)
    return path


def bash(script: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    env = {**os.environ, **variables}
    return subprocess.run(
        ['bash', str(script), *arguments], env=env, text=True, capture_output=True
    )


def test_arguments_and_variables_reach_torch(repo_root, printer):
    done = bash(
        *(repo_root / 'tools' / 'dist_train.sh', 'a config.py', '4'),
        *('--cfg-options', 'key=two words'),
        **dict(PYTHON=str(printer), NNODES='2', NODE_RANK='1', PORT='1234', MASTER_ADDR='host'),
    )
    words = done.stdout.splitlines()
    expected = ['--nnodes=2', '--node_rank=1', '--master_addr=host', '--master_port=1234']
    assert words[:2] == ['-m', 'torch.distributed.run'] and set(expected) < set(words)
    assert '--nproc_per_node=4' in words
    assert words[-5:] == ['a config.py', '--launcher', 'pytorch', '--cfg-options', 'key=two words']


def test_workers_that_restart_meet_anew(repo_root, printer):
    script = repo_root / 'tools' / 'dist_train.sh'
    variables = dict(PYTHON=str(printer), PORT='1234', MASTER_ADDR='host', MAX_RESTARTS='3')
    words = bash(script, 'config.py', '4', **variables).stdout.splitlines()
    expected = {'--rdzv_backend=c10d', '--rdzv_endpoint=host:1234', '--max_restarts=3'}
    assert expected < set(words)
    assert not any(word.startswith(('--node_rank', '--master')) for word in words)


@pytest.mark.parametrize(
    ('variables', 'expected'),
    [({}, '1000'), ({'GOMP_SPINCOUNT': '7'}, '7'), ({'OMP_WAIT_POLICY': 'active'}, 'unset')],
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(
    repo_root: Path, tmp_path: Path, variables: dict[str, str], expected: str
) -> None:
    program = tmp_path / 'python'
    program.write_text('#!/bin/sh\necho "${GOMP_SPINCOUNT-unset}"\n')
    program.chmod(0o755)
    env = {n: v for n, v in os.environ.items() if n not in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')}
    command = ['bash', str(repo_root / 'tools' / 'dist_train.sh'), 'config.py', '1']
    env |= {'PYTHON': str(program), 'PORT': '1234', **variables}
    done = subprocess.run(command, env=env, text=True, capture_output=True, check=True)
    assert done.stdout == f'{expected}\n'


@pytest.mark.parametrize(
    'script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh']
)
def test_paths_of_any_characters_reach_the_tools_unchanged(repo_root, tmp_path, printer, script):
    folder = tmp_path / """it's "one"; $HOME & (more)"""
    folder.mkdir()
    for name in (script, 'dist_common.sh', 'keep_memory.sh'):
        shutil.copy(repo_root / 'tools' / name, folder)
    odd = [f"""{kind}; touch it's "{kind}" $(id) *""" for kind in ('config', 'file')]
    process = [] if script == 'dist_train.sh' else [odd[1]]
    before = ['part', 'my job'] if script.startswith('slurm') else []
    named = ['part', '--job-name=my job'] if before else []
    count = [] if before else ['2']
    path = f'{printer.parent}{os.pathsep}{os.environ["PATH"]}'
    done = bash(
        *(folder / script, *before, odd[0], *process, *count, '--cfg-options', f'key={odd[1]}'),
        **dict(PYTHON=str(printer), PORT='1234', PATH=path),
    )
    words = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert {odd[0], f'key={odd[1]}', *process, *named} <= set(words)
    tool = 'train.py' if 'train' in script else 'test.py'
    assert str(folder / tool) in words


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_slurm_starts_srun(repo_root, printer, tool):
    script = repo_root / 'tools' / f'slurm_{tool}.sh'
    path = f'{printer.parent}{os.pathsep}{os.environ["PATH"]}'
    variables = dict(PATH=path, GPUS='16', GPUS_PER_NODE='4', SRUN_ARGS='--exclusive --quiet')
    done = bash(
        script, 'part', 'job', 'c.py', 'there', '--cfg-options', 'key=two words', **variables
    )
    words = done.stdout.splitlines()
    expected = ['--ntasks=16', '--gres=gpu:4', '--ntasks-per-node=4', '--exclusive', '--quiet']
    assert set(expected) < set(words) and words[:2] == ['-p', 'part']
    assert words[-4:] == ['--launcher', 'slurm', '--cfg-options', 'key=two words']


@pytest.mark.parametrize('name', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_missing_arguments_print_the_usage(repo_root, name):
    done = bash(repo_root / 'tools' / f'{name}.sh')
    assert done.returncode == 2 and 'usage:' in done.stderr


def test_runs_started_together_take_different_ports(repo_root, environment):
    command = f'source {repo_root}/tools/dist_common.sh; free_port; free_port; free_port'
    done = subprocess.run(
        ['bash', '-c', command], env=environment, text=True, capture_output=True, check=True
    )
    ports = [int(port) for port in done.stdout.split()]
    assert len(set(ports)) == 3
    assert min(ports) > 1024
