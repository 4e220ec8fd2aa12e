# SPDX-License-Identifier: Apache-2.0
"""Several processes: the losses of one, sharded checkpoints, two nodes, and workers that die."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest
import torch

from mmfocal.engine.sharding import read_sharded
from mmfocal.models.checkpoint_files import read_checkpoint, tensors_of
from tests.helpers.processes import run_in_processes

HOOK = """
import os
import signal
from pathlib import Path

import torch
from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Record(Hook):
    '''Loss of the total batch, and parameters without gradients.'''

    priority = 'VERY_LOW'

    def before_train(self, runner):
        self.losses, self.unused = [], set()

        def check_gradients(optimizer, *_):
            params = [each for group in optimizer.param_groups for each in group['params']]
            self.unused |= {i for i, each in enumerate(params) if each.grad is None}

        runner.optim_wrapper.optimizer.register_step_pre_hook(check_gradients)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = torch.as_tensor(outputs['loss']).detach().clone()
        all_reduce(loss, 'mean')
        self.losses.append(loss.item())

    def after_train(self, runner):
        find_unused = getattr(runner.model, 'find_unused_parameters', None)
        found = dict(losses=self.losses, unused=self.unused, find_unused=find_unused)
        torch.save(found, f'{runner.work_dir}/recorded{get_rank()}.pt')


@HOOKS.register_module()
class DieOnce(Hook):
    '''Rank 1 gets SIGKILL at the fifth iteration of the first attempt.'''

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        marker = Path(runner.work_dir, 'died')
        if runner.iter == 4 and get_rank() == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""
CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['mmfocal', 'scale_out_hooks'], allow_failed_imports=False)
custom_hooks = [dict(type='Record')]
optim_wrapper = dict(
    type='OptimWrapper', clip_grad=dict(max_norm=5.0),
    optimizer=dict(_delete_=True, type='SGD', lr=0.1),
)
param_scheduler = None
train_cfg = dict(max_iters=6, val_interval=6)
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(indices=4))
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2, max_keep_ckpts=-1))
"""
TOTAL = 4  # images of a step
PAGE = (Path(__file__).resolve().parents[2] / 'docs/scale_out.md').read_text()
FSDP = re.findall(r' --cfg-options (.+FullyShardStrategy)\n', PAGE)[0].split()
DDP = ['runner_type=FlexibleRunner', 'strategy.type=DDPStrategy']


@pytest.fixture
def project(workspace: Path, repo_root: Path) -> Path:
    """A config and its hooks in the workspace."""
    base = str(repo_root / 'configs' / 'quickstart' / 'focal_nano_cls.py')
    (workspace / 'scale_out_hooks.py').write_text(HOOK)
    (workspace / 'config.py').write_text(CONFIG.format(base=base))
    return workspace


def train(
    folder: Path,
    name: str,
    options: list[str],
    launcher: str,
    ranks: int,
    config: str = 'config.py',
) -> None:
    """Run ``tools/train.py`` in this process."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    main = run_path(str(Path(__file__).resolve().parents[2] / 'tools' / 'train.py'))['main']
    settings = [f'train_dataloader.batch_size={TOTAL // ranks}', *options]
    main([config, '--work-dir', name, '--launcher', launcher, '--cfg-options', *settings])


def body(rank: int, folder: Path, ranks: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    train(folder, f'ddp{ranks}', DDP, 'pytorch', ranks)
    train(folder, f'fsdp{ranks}', FSDP, 'pytorch', ranks)


@pytest.mark.slow
def test_ddp_and_fsdp2_train_as_one_process(project: Path, run) -> None:
    """Losses of 2 and 4 processes equal those of one, which resumes a sharded checkpoint."""
    settings = [f'train_dataloader.batch_size={TOTAL}']
    run('train.py', 'config.py', '--work-dir', 'one', '--cfg-options', *settings)
    one = torch.load(project / 'one' / 'recorded0.pt')['losses']
    for ranks in (2, 4):
        run_in_processes(body, project, project, ranks, ranks=ranks)
        for kind in ('ddp', 'fsdp'):
            for rank in range(ranks):
                found = torch.load(project / f'{kind}{ranks}' / f'recorded{rank}.pt')
                assert not found['unused'] and not found['find_unused']
                # A sum of n terms in another order differs by n eps at most. Gradients sum over
                # batch, tokens and channels; steps of learning rate 0.1 with clipped gradients
                # propagate the differences.
                assert found['losses'] == pytest.approx(one, rel=1e-5), (kind, ranks)
    assert max(one) - min(one) > 0.01  # the steps change the loss by far more than that

    whole = tensors_of(read_sharded(project / 'fsdp4' / 'iter_4.pth'), 'fsdp4')
    plain = tensors_of(read_checkpoint(str(project / 'ddp4' / 'iter_4.pth')), 'ddp4')
    assert whole.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(whole[name], value, rtol=1e-4, atol=1e-6)
    resumed = ['--resume', 'fsdp4/iter_4.pth', '--work-dir', 'resumed']
    run('train.py', 'config.py', *resumed, '--cfg-options', *settings)
    losses = torch.load(project / 'resumed' / 'recorded0.pt')['losses']
    assert losses == pytest.approx(one[4:], rel=1e-5)
    printed = run('test.py', 'config.py', 'fsdp2/iter_6.pth')
    assert 'accuracy/top1' in printed


# Normalization that does not depend on how images are distributed: ATSS divides by the positive
# samples of all processes, and UperNet averages over pixels; its batch norm would be local.
HEADS = {
    'atss': [],
    'upernet': [
        f'model.{head}_head.{setting}'
        for head in ('decode', 'auxiliary')
        for setting in ('norm_cfg.type=GN', 'norm_cfg.num_groups=8', 'dropout_ratio=0')
    ],
}
SHORT = ['train_cfg.max_iters=2', 'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None']


def train_heads(rank: int, folder: Path, ranks: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    for name, options in HEADS.items():
        train(folder, f'{name}{ranks}', [*SHORT, *options], 'pytorch', ranks, f'{name}.py')


@pytest.mark.slow
def test_heads_train_as_one_process(workspace: Path, repo_root: Path) -> None:
    """Losses of a detector and a segmentor in two processes, without unused parameters."""
    (workspace / 'scale_out_hooks.py').write_text(HOOK)
    for name in HEADS:
        base = str(repo_root / 'configs' / 'quickstart' / f'focal_nano_{name}.py')
        (workspace / f'{name}.py').write_text(CONFIG.format(base=base))
    for ranks in (1, 2):
        run_in_processes(train_heads, workspace, workspace, ranks, ranks=ranks)
    for name in HEADS:
        one = torch.load(workspace / f'{name}1' / 'recorded0.pt')
        assert abs(one['losses'][0] - one['losses'][1]) > 0.01
        for rank in range(2):
            found = torch.load(workspace / f'{name}2' / f'recorded{rank}.pt')
            assert not found['unused'] and found['find_unused'] is False
            # as above
            assert found['losses'] == pytest.approx(one['losses'], rel=1e-5), name


def free_port() -> str:
    with socket.create_server(('', 0)) as server:
        return str(server.getsockname()[1])


@pytest.mark.slow
def test_two_nodes_and_a_worker_that_comes_back(
    project: Path, repo_root: Path, environment: dict[str, str]
) -> None:
    """Two nodes, and two workers of which one restarts, end with equal weights bit for bit."""
    script = ['bash', str(repo_root / 'tools' / 'dist_train.sh'), 'config.py']
    batch = ['--cfg-options', 'train_dataloader.batch_size=2']
    pipes = dict(cwd=project, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    starts = re.findall(r'^(NNODES=2 .+) bash tools/dist_train\.sh CONFIG 8', PAGE, re.MULTILINE)
    here = dict(MASTER_ADDR='127.0.0.1', PORT=free_port())
    nodes = [
        subprocess.Popen(
            [*script, '1', '--work-dir', 'nodes', *batch],
            env={**environment, **dict(word.split('=') for word in start.split()), **here}, **pipes
        )
        for start in starts
    ]  # fmt: skip
    assert len(nodes) == 2
    for node in nodes:
        printed, _ = node.communicate(timeout=300)
        assert node.returncode == 0, printed[-3000:]
    with open(project / 'config.py', 'a') as file:
        file.write("custom_hooks = [dict(type='Record'), dict(type='DieOnce')]\n")
    done = subprocess.run(
        [*script, '2', '--work-dir', 'elastic', '--resume', *batch],
        env={**environment, 'MAX_RESTARTS': '1'}, timeout=300, **pipes
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert (project / 'elastic' / 'died').exists()
    assert re.search(r'resumed epoch: 0, iter: 4', done.stdout)
    names = [project / kind / 'iter_6.pth' for kind in ('nodes', 'elastic')]
    one, two = (torch.load(name, weights_only=False)['state_dict'] for name in names)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
