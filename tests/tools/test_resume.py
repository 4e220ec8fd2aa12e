# SPDX-License-Identifier: Apache-2.0
"""A killed training goes on where it was."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

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
    """One of each; the tool mounts a small disk where it may, else it leaves that one out."""
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
    assert printed.count('The total batch is 2 (1 x 2), the learning rate is for 64.') == 1
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
