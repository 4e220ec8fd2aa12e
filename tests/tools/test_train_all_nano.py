# SPDX-License-Identifier: Apache-2.0
"""The script that trains every small config: the files that it keeps, its report, its limits."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmfocal.analysis.run_log import read_tests
from mmfocal.engine import read_config
from tests.helpers.config_suite import build, load

ROOT = Path(__file__).resolve().parents[2]
LIMITS = json.loads((ROOT / 'tools/dev/nano_thresholds.json').read_text())
RUNS = """my runs, lr=1e-4; it's "one" [x]"""
JITTER = 'focal_nano_maskrcnn_jitter'  # also tested at several scales
COLUMNS = {  # metric and margin
    'box AP': ('coco/bbox_mAP', 0.05),
    'mask AP': ('coco/segm_mAP', 0.05),
    'mIoU (%)': ('mIoU', 5),
    'top-1 (%)': ('accuracy/top1', 0.5),
}
SHORT = ' '.join(
    [
        *('train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'train_dataloader.batch_size=2'),
        'default_hooks.logger.interval=1',
    ]
)


def command(*words: str | Path, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        list(map(str, words)),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **settings,
    )


def check(*work_dirs: Path) -> subprocess.CompletedProcess:
    return command(sys.executable, ROOT / 'tools/dev/check_nano_results.py', *work_dirs)


def write_log(work_dir: Path, results: dict[str, float]) -> Path:
    folder = work_dir / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    lines = dict(step=10, lr=1.0, loss=3.0, time=6.0), dict(step=10, **results)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    return work_dir


def write_test(work_dir: Path, results: dict[str, float], model: str) -> None:
    folder = work_dir / '20260102_000000'
    (folder / 'vis_data').mkdir(parents=True)
    (folder / 'vis_data/config.py').write_text(f'model = {model}\n')
    (folder / '20260102_000000.json').write_text(json.dumps(results))


def test_it_trains_tests_reports_keeps_and_judges(workspace, environment):
    script = ['bash', ROOT / 'tools/dev/train_all_nano.sh', 'maskrcnn_jitter']
    settings = dict(cwd=workspace, env={**environment, 'OPTIONS': SHORT, 'WORK_DIRS': RUNS})
    first = command(*script, **settings)
    limit = LIMITS[JITTER]['coco/bbox_mAP']
    complaint = rf'{JITTER}: coco/bbox_mAP is (0\.0|missing), expected at least {limit}'
    assert first.returncode == 1 and re.search(complaint, first.stdout), first.stdout[-4000:]
    assert [test.is_multi_scale for test in read_tests(workspace / RUNS / JITTER)] == [True]
    table = (workspace / RUNS / 'results.md').read_text()
    assert table.splitlines()[2].startswith(f'| {JITTER} | 2 |')
    second = command(*script, **settings)
    assert second.returncode == 1 and re.search(complaint, second.stdout)
    assert f'already trained: {RUNS}/{JITTER}' in second.stdout
    assert 'Iter(' not in second.stdout


def test_some_start_from_mask_rcnn(workspace, environment):
    script = ['bash', ROOT / 'tools/dev/train_all_nano.sh']
    settings = dict(cwd=workspace, env={**environment, 'OPTIONS': SHORT, 'WORK_DIRS': RUNS})
    source = f'{RUNS}/focal_nano_maskrcnn'
    for method in ('sparsercnn', 'dyhead', 'upernet'):
        refused = command(*script, method, **settings)
        assert refused.returncode == 1 and 'Iter(' not in refused.stdout
        complaint = (
            f'{method} starts from the backbone of maskrcnn, but {source} holds no finished'
        )
        assert complaint in refused.stdout
    checkpoint = workspace / source / 'trained.pth'
    checkpoint.parent.mkdir(parents=True)
    model = build(load('quickstart/focal_nano_maskrcnn'))
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    checkpoint.with_name('last_checkpoint').write_text(str(checkpoint))
    checkpoint.with_name('results.md').touch()
    done = command(*script, 'upernet', **settings)
    loaded = rf'{re.escape(str(checkpoint))}: loaded \d+, resized 0'
    assert re.search(loaded, done.stdout), done.stdout[-4000:]
    assert 'focal_nano_upernet: mIoU is' in done.stdout


def test_results_at_and_below_the_limit(tmp_path):
    limits = LIMITS['focal_nano_htcpp']
    good = write_log(tmp_path / 'good/focal_nano_htcpp', limits)
    assert check(good).returncode == 0
    worse = {**limits, 'coco/segm_mAP': limits['coco/segm_mAP'] - 0.001}
    bad = check(good, write_log(tmp_path / 'bad/focal_nano_htcpp', worse))
    assert bad.returncode == 1 and bad.stdout.count('expected at least') == 1
    unfinished = check(write_log(tmp_path / 'unfinished/focal_nano_htcpp', {}))
    assert unfinished.stdout.count('missing') == len(limits)
    unknown = check(write_log(tmp_path / 'mine', limits))
    assert unknown.returncode == 1 and 'no limits for' in unknown.stdout


def test_several_scales_may_lose_little(tmp_path):
    work_dir = write_log(tmp_path / JITTER, LIMITS[JITTER])
    write_test(work_dir, LIMITS[JITTER], "dict(type='MaskRCNN')")  # a single scale
    missing = check(work_dir)
    assert missing.returncode == 1
    assert missing.stdout.count('multi-scale') == missing.stdout.count('missing') == 2
    views = []
    for difference in (0.05, -0.02, -0.021):
        views.append(write_log(tmp_path / str(difference) / JITTER, LIMITS[JITTER]))
        mask = round(LIMITS[JITTER]['coco/segm_mAP'] + difference, 3)
        found = {**LIMITS[JITTER], 'coco/segm_mAP': mask}
        write_test(views[-1], found, "dict(type='MaskTTAModel', module=dict())")
    assert check(*views[:2]).returncode == 0
    done = check(*views)
    assert done.returncode == 1
    assert done.stdout.strip() == (
        f'{JITTER}: multi-scale coco/segm_mAP is 0.296, expected at least 0.297'
    )


def test_every_method_has_limits():
    script = (ROOT / 'tools/dev/train_all_nano.sh').read_text()
    methods = re.search(r'^methods=\((.+)\)$', script, re.MULTILINE)[1].split()
    assert [f'focal_nano_{method}' for method in methods] == list(LIMITS)


@pytest.mark.parametrize('name', LIMITS)
def test_the_published_table_holds_the_limits(name):
    lines = (ROOT / 'docs/nano_results.md').read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if '|' in line]
    (row,) = (dict(zip(rows[0], row, strict=True)) for row in rows if f'{name}.py' in row[0])
    assert (
        int(row['iterations'])
        == read_config(ROOT / f'configs/quickstart/{name}.py').train_cfg.max_iters
    )
    found = {}
    for column, (metric, margin) in COLUMNS.items():
        if row[column]:
            measured, limit = map(float, re.fullmatch(r'(\S+) \((\S+)\)', row[column]).groups())
            assert limit == pytest.approx(max(measured - margin, measured / 2))
            found[metric] = limit
    assert found == LIMITS[name]
