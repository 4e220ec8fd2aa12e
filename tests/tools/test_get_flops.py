# SPDX-License-Identifier: Apache-2.0
"""The table of parameters and FLOPs on the command line."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmfocal.analysis.complexity import CONVENTIONS, complexity
from mmfocal.engine import read_config

CONFIG = 'configs/quickstart/focal_nano_cls.py'


@pytest.fixture
def get_flops(
    repo_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., str]:
    """Run the tool in this process and return what it prints."""

    def run(*arguments: object) -> str:
        tool = str(repo_root / 'tools/analysis/get_flops.py')
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(tool, run_name='__main__')
        return capsys.readouterr().out

    return run


def cells(output: str) -> dict[str, list[str]]:
    """Rows of the table by their first cell."""
    rows = [line.strip('│┃').replace('┃', '│') for line in output.splitlines() if line[:1] in '│┃']
    split = [[cell.strip() for cell in row.split('│')] for row in rows]
    return {row[0]: row[1:] for row in split}


def test_table(get_flops, repo_root):
    model = complexity(read_config(repo_root / CONFIG))
    output = get_flops(repo_root / CONFIG)
    table = cells(output)
    assert table['module'] == ['type', 'params', 'default']
    total = [f'{model.params / 1e6:.3f}', f'{model.flops() / 1e9:.2f}']
    assert table['total'] == ['', *total]
    assert table['backbone'][0] == 'FocalTransformer'
    assert {'layers', 'patch_embed', 'head', 'fc'} <= set(table)
    assert 'multiply-accumulates' in output
    assert f'default, 56x56: {CONVENTIONS["default"].meaning}' in output


def test_shape_depth_and_options(get_flops, repo_root):
    options = ('--cfg-options', 'model.backbone.arch.embed_dims=64', 'model.head.in_channels=512')
    output = get_flops(repo_root / CONFIG, '--shape', 64, 96, '--depth', 1, *options)
    assert 'default, 64x96' in output
    table = cells(output)
    assert list(table) == ['module', 'backbone', 'head', 'total']
    assert table['head'] == ['LinearClsHead', '0.005', '0.00']


def test_conventions(get_flops, repo_root):
    output = get_flops(repo_root / CONFIG, '--convention', 'linear', 'matmul-132')
    assert cells(output)['module'][2:] == ['linear', 'matmul-132']
    output = get_flops(repo_root / CONFIG, '--convention')
    table = cells(output)
    assert table['module'][2:] == list(CONVENTIONS)
    assert len(table['total']) == len(CONVENTIONS) + 2
    assert 'reppointsv2, 1280x1280' in output and 'upernet-focal, 56x56' in output


def test_default_agrees_with_the_readme(get_flops, repo_root):
    name = 'focal_nano_maskrcnn'
    readme = (repo_root / 'configs/quickstart/README.md').read_text()
    (row,) = [line for line in readme.splitlines() if line.startswith(f'| [`{name}`]')]
    params, flops = [cell.strip() for cell in row.split('|')][3:5]
    _, computed, gflops = cells(get_flops(repo_root / f'configs/quickstart/{name}.py'))['total']
    assert (f'{float(computed):.2f}', gflops) == (params, flops)


def test_documentation_shows_what_is_printed(get_flops, repo_root):
    page = (repo_root / 'docs/flops.md').read_text()
    _, tool, config, *options = page.split('```shell\n')[1].splitlines()[0].split()
    assert tool == 'tools/analysis/get_flops.py'
    documented = {line.strip() for line in page.splitlines()}
    output = get_flops(repo_root / config, *options)
    table = output[output.index('┏') :].splitlines()  # the host library may print before it
    assert [line for line in table if line.strip() not in documented] == []
    assert not [name for name in CONVENTIONS if f'| `{name}` |' not in page]


def test_errors(get_flops, repo_root, capsys):
    with pytest.raises(SystemExit):
        get_flops(repo_root / CONFIG, '--convention', 'fvcore')
    message = capsys.readouterr().err
    assert "invalid choice: 'fvcore'" in message and 'matmul-120' in message
    with pytest.raises(ValueError, match='at least 32, got'):
        get_flops(repo_root / CONFIG, '--shape', 8, 8)
    with pytest.raises(SystemExit, match=r'^error: config no_such_config\.py does not exist'):
        get_flops('no_such_config.py')
