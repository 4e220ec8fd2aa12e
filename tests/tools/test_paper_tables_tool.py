# SPDX-License-Identifier: Apache-2.0
"""The command line that completes the paper's tables."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from mmengine.logging import MMLogger

from tools.dev.model_zoo import tables as tables_tool
from tools.dev.model_zoo.paper import PAPER_FILE


@pytest.fixture
def nano_paper(tmp_path: Path) -> Path:
    """Printed numbers with two rows, both of nano models."""
    content = yaml.safe_load(PAPER_FILE.read_text())
    rows = [
        dict(name='UperNet', method='upernet', config='quickstart/focal_nano_upernet.py'),
        dict(name='Classifier', method='classification', config='quickstart/focal_nano_cls.py'),
    ]
    settings = dict(shape=[160, 160], convention='default')
    scores = ['miou', 'miou_ms']
    content['tables'] = [
        dict(title='Nano', source='nowhere', scores=scores, defaults=settings, rows=rows)
    ]
    path = tmp_path / 'paper.yml'
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Run the tool in this process, as starting another one takes seconds."""
    logger = MMLogger.get_current_instance()
    level = logger.level

    def run_tool(*options: object) -> None:
        monkeypatch.setattr(sys, 'argv', ['tables', *map(str, options)])
        tables_tool.main()

    yield run_tool
    logger.setLevel(level)


def test_the_page_is_written_then_checked(
    tables: Callable, nano_paper: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ('--paper', nano_paper, '--out', tmp_path / 'out')
    with pytest.raises(SystemExit, match=r'out of date(.|\n)+out/paper_tables\.md'):
        tables(*options, '--check')
    assert not (tmp_path / 'out').exists()
    tables(*options)
    printed = capsys.readouterr().out
    assert 'Building models' in printed and '100%' in printed
    assert f'wrote {tmp_path}/out/paper_tables.md' in printed
    page = (tmp_path / 'out' / 'paper_tables.md').read_text()
    assert '| UperNet | [`focal_nano_upernet`](' in page
    assert '| not run |' in page
    tables(*options, '--check')


def test_configs_without_a_row_are_named(tables: Callable, nano_paper: Path) -> None:
    with pytest.raises(
        ValueError, match=r'no row of tools/dev/model_zoo/paper\.yml has this config'
    ):
        tables('--paper', nano_paper, '--check')


def test_no_run(tables: Callable, nano_paper: Path, tmp_path: Path) -> None:
    empty = tmp_path / 'empty'
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r'empty holds no config \(\*\.py\) of a run'):
        tables('--paper', nano_paper, '--out', tmp_path, '--work-dirs', empty)


@pytest.mark.slow
def test_scores_of_a_real_run(
    run: Callable, tables: Callable, workspace: Path, nano_paper: Path, repo_root: Path
) -> None:
    config = repo_root / 'configs' / 'quickstart' / 'focal_nano_upernet.py'
    short = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'train_dataloader.batch_size=2']
    short += ['default_hooks.logger.interval=1', 'default_hooks.checkpoint.interval=2']
    run('train.py', config, '--work-dir', 'out', '--cfg-options', *short)
    options = ('--paper', nano_paper, '--out', workspace, '--work-dirs', workspace / 'out')

    def cells() -> list[str]:
        tables(*options)
        page = (workspace / 'paper_tables.md').read_text()
        (line,) = (line for line in page.splitlines() if line.startswith('| UperNet |'))
        return [cell.strip() for cell in line.strip('| ').split('|')]

    (log,) = workspace.glob('out/*/vis_data/scalars.json')
    last = json.loads(log.read_text().splitlines()[-1])
    assert cells()[-2:] == [f'{last["mIoU"]:.1f}', 'not run']
    run('test.py', config, 'out/iter_2.pth', '--work-dir', 'out', '--tta')
    (tested,) = (path for path in workspace.glob('out/*/*.json') if path.stem == path.parent.name)
    found = json.loads(tested.read_text())['mIoU']
    assert cells()[-2:] == [f'{last["mIoU"]:.1f}', f'{found:.1f}']
