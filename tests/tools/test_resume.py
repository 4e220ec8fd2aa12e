# SPDX-License-Identifier: Apache-2.0
"""A killed training resumes where it ended."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmfocal.engine import InputError, load_config
from tests.helpers.run_checkpoints import damage, training_checkpoint
from tools.train import apply_options, main, make_parser

OPTIONS = [
    'train_cfg.max_iters=30',
    'train_cfg.val_interval=30',
    'train_dataloader.batch_size=2',
    'train_dataloader.num_workers=0',
    'val_dataloader.dataset.indices=4',
    'default_hooks.logger.interval=1',
    'default_hooks.checkpoint.interval=1',
    'default_hooks.checkpoint.max_keep_ckpts=50',
]


@pytest.mark.slow
def test_faults_at_random_points_change_nothing(repo_root, environment):
    """One fault of each kind; the tool leaves out the full disk if it may not mount one."""
    done = subprocess.run(
        [sys.executable, str(repo_root / 'tools' / 'dev' / 'inject_faults.py'), '--times', '1'],
        env=environment, text=True, capture_output=True, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, f'{done.stdout[-2000:]}\n{done.stderr[-3000:]}'
    rows = [line.split(' | ') for line in done.stdout.splitlines() if line.startswith('| ')][1:]
    assert len(rows) >= 4 and all(row[1:3] == ['1', '1'] for row in rows), done.stdout


def iterations_of(printed: str) -> list[int]:
    return [int(number) for number in re.findall(r'Iter\(train\)\s*\[\s*(\d+)/30\]', printed)]


def test_resume_after_sigkill_and_a_truncated_checkpoint(run, workspace, repo_root, environment):
    config = repo_root / 'configs' / 'quickstart' / 'focal_nano_cls.py'
    arguments = [str(config), '--work-dir', 'out', '--cfg-options', *OPTIONS]
    out = workspace / 'out'
    with open(workspace / 'first.log', 'w') as log:
        command = [sys.executable, str(repo_root / 'tools' / 'train.py'), *arguments]
        first = subprocess.Popen(command, cwd=workspace, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not (out / 'iter_4.pth').exists() and time.monotonic() < deadline:
            assert first.poll() is None, (workspace / 'first.log').read_text()[-3000:]
            time.sleep(0.05)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    assert not (out / 'iter_30.pth').exists()
    # as if the kill had come in the middle of the next write
    whole = (out / 'iter_3.pth').read_bytes()
    (out / 'iter_29.pth').write_bytes(whole[: len(whole) // 2])
    (out / 'last_checkpoint').write_text(str(out / 'iter_29.pth'))

    printed = run('train.py', *arguments, '--resume')
    assert 'iter_29.pth is incomplete' in printed
    assert printed.count('The total batch is 2 (1 x 2); the learning rate is set for 64.') == 1
    resumed = int(re.search(r'resumed epoch: 0, iter: (\d+)', printed).group(1))
    assert 3 <= resumed < 29
    assert iterations_of(printed) == list(range(resumed + 1, 31))
    assert printed.count('accuracy/top1') == 1
    before = torch.load(out / f'iter_{resumed}.pth', weights_only=False)
    after = torch.load(out / 'iter_30.pth', weights_only=False)
    assert after['meta']['iter'] == 30
    # the schedule and AdamW's moments went on as well
    steps = {state['step'].item() for state in after['optimizer']['state'].values()}
    assert steps == {30.0}
    key = 'head.fc.weight'
    assert not torch.equal(before['state_dict'][key], after['state_dict'][key])

    # as if the kill had come between the last checkpoint and its validation
    again = run('train.py', *arguments, '--resume')
    assert iterations_of(again) == []
    assert again.count('accuracy/top1') == 1
    scores = [re.search(r'accuracy/top1: (\S+)', text).group(1) for text in (printed, again)]
    assert scores[0] == scores[1]


def test_a_single_truncated_checkpoint_means_a_fresh_start(run, workspace, repo_root):
    config = repo_root / 'configs' / 'quickstart' / 'focal_nano_cls.py'
    out = workspace / 'out'
    out.mkdir()
    (out / 'iter_1.pth').write_bytes(b'PK')
    (out / 'last_checkpoint').write_text(str(out / 'iter_1.pth'))
    options = ['--cfg-options', *OPTIONS, 'train_cfg.max_iters=1', 'train_cfg.val_interval=1']
    printed = run('train.py', config, '--work-dir', 'out', '--resume', *options)
    assert 'iter_1.pth is incomplete' in printed and 'resumed' not in printed
    assert torch.load(out / 'iter_1.pth', weights_only=False)['meta']['iter'] == 1


# ---- what a command resumes or replaces --------------------------------------------------------


def applied(repo_root: Path, *arguments: str) -> Config:
    """The config of a command of which the training would start."""
    config = str(repo_root / 'configs' / 'quickstart' / 'focal_nano_cls.py')
    args = make_parser().parse_args([config, '--work-dir', 'out', *arguments])
    cfg = load_config(args)
    apply_options(cfg, args)
    return cfg


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work directory whose newest checkpoint, iter_9, is damaged; the one before is iter_4."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / 'out'
    training_checkpoint(out / 'iter_4.pth')
    damage(training_checkpoint(out / 'iter_9.pth'), 'truncated')
    (out / 'last_checkpoint').write_text('out/iter_9.pth')
    training_checkpoint(tmp_path / 'elsewhere.pth')
    return out


@pytest.mark.parametrize(
    ('arguments', 'load_from', 'resumes'),
    [
        (['--resume'], 'out/iter_4.pth', True),
        (['--resume', 'elsewhere.pth'], 'elsewhere.pth', True),
        (['--overwrite'], None, False),
        (['--overwrite', '--resume'], 'out/iter_4.pth', True),
        # settings of MMEngine, which would take the damaged one
        (['--cfg-options', 'resume=True'], 'out/iter_4.pth', True),
        (['--cfg-options', 'resume=True', 'load_from=elsewhere.pth'], 'elsewhere.pth', True),
        (['--cfg-options', 'resume=elsewhere.pth'], 'elsewhere.pth', True),  # FlexibleRunner's
        (['--work-dir', 'new', '--resume'], None, False),
        (['--work-dir', 'new', '--cfg-options', 'resume=True'], None, False),
        (['--work-dir', 'new', '--cfg-options', 'resume=False'], None, False),
        (  # the first start of a command that may be interrupted
            ['--work-dir', 'new', '--resume', '--cfg-options', 'load_from=elsewhere.pth'],
            'elsewhere.pth',
            False,
        ),
    ],
)
@pytest.mark.usefixtures('earlier')
def test_what_a_command_goes_on_from(repo_root, arguments, load_from, resumes):
    cfg = applied(repo_root, *arguments)
    assert (cfg.get('load_from'), bool(cfg.get('resume'))) == (load_from, resumes)


@pytest.mark.parametrize('named', [True, False])
def test_a_new_training_does_not_replace_an_earlier_one(earlier, repo_root, named):
    if not named:
        (earlier / 'last_checkpoint').unlink()
    before = {path: path.stat().st_mtime_ns for path in earlier.iterdir()}
    config = str(repo_root / 'configs' / 'quickstart' / 'focal_nano_cls.py')
    with pytest.raises(InputError) as error:
        main([config, '--work-dir', 'out'])
    words = ('the newest is out/iter_9.pth', '--resume ', '--work-dir DIR', '--overwrite ')
    assert all(word in str(error.value) for word in words), error.value
    assert {path: path.stat().st_mtime_ns for path in earlier.iterdir()} == before


@pytest.mark.parametrize('options', [('load_from=absent.pth',), ('resume=absent.pth',)])
def test_absent_checkpoints_of_a_config_are_named(repo_root, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'absent\.pth does not exist'):
        applied(repo_root, '--cfg-options', *options)
