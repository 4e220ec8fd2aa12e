# SPDX-License-Identifier: Apache-2.0
"""The command lines of all three tasks, end to end on a few digit scenes."""

import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmfocal.compat import VERSION

SHORT = [
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'train_dataloader.batch_size=2',
    'val_dataloader.dataset.indices=4',
    'test_dataloader.dataset.indices=4',
    'default_hooks.logger.interval=1',
    'default_hooks.checkpoint.interval=1',
]
# older releases of PyTorch read a training checkpoint by unpickling only
ALLOWED = () if VERSION >= (2, 6) else ('--allow-pickle',)


def scalars(work_dir: Path) -> list[dict]:
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in log.read_text().splitlines()]


def starts_quietly(printed: str, work_dir: Path) -> None:
    """The terminal has a few lines before the first loss, the log file has the config too."""
    before, first, _ = printed.partition('Iter(train)')
    of_pycocotools = ('loading annotations', 'Done (t=', 'creating index', 'index created')
    lines = [line for line in before.splitlines() if not line.startswith(of_pycocotools)]
    assert first and len(lines) < 20, before
    (log,) = work_dir.glob('*/*.log')
    for lengthy in ('Config:\n', 'System environment', 'Hooks will be executed'):
        assert lengthy not in printed and lengthy in log.read_text(), lengthy


@pytest.mark.parametrize(
    ('config', 'metric', 'replaced', 'train_options', 'test_options'),
    [
        ('focal_nano_maskrcnn', 'coco/segm_mAP', 'AMP', (), ()),
        ('focal_nano_upernet', 'mIoU', 'SyncBN', (), ('--tta',)),
        ('focal_nano_cls', 'accuracy/top1', 'AMP', ('runner_type=FlexibleRunner',), ()),
    ],
)
def test_trains_evaluates_draws_and_dumps(
    run, workspace, repo_root, config, metric, replaced, train_options, test_options
):
    path = repo_root / 'configs' / 'quickstart' / f'{config}.py'
    amp = ['--amp'] if replaced == 'AMP' else []
    printed = run(
        'train.py', path, '--work-dir', 'out', *amp, '--cfg-options', *SHORT, *train_options
    )
    starts_quietly(printed, workspace / 'out')
    records = scalars(workspace / 'out')
    losses = [record['loss'] for record in records if 'loss' in record]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
    assert metric in records[-1]
    (line,) = (line for line in printed.splitlines() if line.startswith('No GPU: '))
    assert replaced in line

    checkpoint = workspace / 'out' / 'iter_2.pth'
    options = [
        '--work-dir',
        'tested',
        '--out',
        'found.pkl',
        '--show-dir',
        'pictures',
        *ALLOWED,
        *test_options,
    ]
    run('test.py', path, checkpoint, *options, '--cfg-options', *SHORT)
    assert len(pickle.loads((workspace / 'found.pkl').read_bytes())) == 4
    assert len(list((workspace / 'pictures').glob('*.png'))) == 4
    (tested,) = (workspace / 'tested').glob('*/*.json')
    # the same weights on the same images, unless several views of an image are averaged
    assert metric in json.loads(tested.read_text())
    if not test_options:
        assert json.loads(tested.read_text())[metric] == pytest.approx(records[-1][metric])


def test_classification_averages_views(run, workspace, repo_root):
    path = repo_root / 'configs' / 'quickstart' / 'focal_nano_cls.py'
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    nn.init.normal_(model.head.fc.weight)  # views must differ
    torch.save({'state_dict': model.state_dict()}, workspace / 'model.pth')
    scores = []
    for option in ('--amp', '--tta'):
        options = [option, '--out', 'found.pkl', '--overwrite', '--cfg-options', *SHORT]
        assert 'accuracy/top1' in run('test.py', path, 'model.pth', *options)
        found = pickle.loads((workspace / 'found.pkl').read_bytes())
        scores.append(torch.stack([sample['pred_score'] for sample in found]))
    assert scores[0].shape == scores[1].shape == (4, 10)
    assert scores[1].sum(1).allclose(torch.ones(4)) and not scores[1].allclose(scores[0])
