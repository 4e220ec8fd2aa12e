# SPDX-License-Identifier: Apache-2.0
"""``collect_env`` and a failing import name incompatible packages and a command that fixes it."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mmfocal.environment import require

MODULE = Path(__file__).parents[1] / 'mmfocal/environment.py'
SHOW = f"""
import runpy
module = runpy.run_path({str(MODULE)!r})
print(*module['problems'](), sep='\\n')
try:
    module['require']('mmcv.ops')  # which none of these interpreters has
except ImportError as error:
    print('import:', *str(error).splitlines())
"""
ORIGINAL = {'mmengine': '0.10.7', 'torch': '2.4.1', 'numpy': '1.26.4'}
LITE = {'mmengine-lite': '0.10.7', 'torch': '2.4.1', 'numpy': '1.26.4'}
ONEDL = {'onedl-mmengine': '0.10.12', 'torch': '2.11.0', 'numpy': '2.2.6'}


def run(code: str, *options: str, path: Path | None = None) -> subprocess.CompletedProcess:
    env = {**os.environ, **({} if path is None else {'PYTHONPATH': str(path)})}
    command = [sys.executable, *options, '-c', code]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def show_problems(
    folder: Path, versions: dict[str, str], modules: tuple[str, ...]
) -> tuple[list[str], str]:
    """Problems, and the error of an import, where nothing else is installed."""
    for name, version in versions.items():
        info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
        )
    for name in modules:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    result = run(SHOW, '-S', path=folder)
    assert result.returncode == 0, result.stderr
    *problems, failure = result.stdout.splitlines()
    return problems, failure.removeprefix('import: ')


COMMON = ('cv2.py', 'pkg_resources.py')
OPERATORS = ('mmcv/__init__.py', 'mmcv/_ext.cpython-311.so')


@pytest.mark.parametrize('family', [ORIGINAL, ONEDL])
def test_what_fits_is_not_complained_about(tmp_path: Path, family: dict[str, str]) -> None:
    prefix = 'onedl-' if family is ONEDL else ''
    versions = family | {f'{prefix}mmcv': '2.1.0', f'{prefix}mmsegmentation': '1.2.2'}
    problems, failure = show_problems(tmp_path, versions, COMMON + OPERATORS)
    assert problems == [''] and failure == "No module named 'mmcv.ops'"


@pytest.mark.parametrize(
    ('versions', 'modules', 'parts'),
    [
        (
            ORIGINAL | {'mmcv': '2.1.0', 'onedl-mmcv': '2.3.6'},
            COMMON + OPERATORS,
            ('mmcv 2.1.0 and onedl-mmcv 2.3.6', 'pip uninstall -y mmcv onedl-mmcv'),
        ),
        (
            ONEDL | {'onedl-mmcv': '2.3.6', 'mmdet': '3.3.0'},
            COMMON + OPERATORS,
            ('(mmdet 3.3.0)', 'pip uninstall -y mmdet && pip install onedl-mmdetection'),
        ),
        (
            ORIGINAL | {'onedl-mmcv': '2.3.6', 'onedl-mmpretrain': '1.3.6'},
            COMMON + OPERATORS,
            (
                'OpenMMLab (mmengine 0.10.7) and their',
                '(onedl-mmcv 2.3.6, onedl-mmpretrain 1.3.6) are mixed: pip uninstall -y '
                'onedl-mmcv onedl-mmpretrain && pip install mmpretrain && ',
                '--no-build-isolation',
                'mmcv==2.1.0',
            ),
        ),
        (
            ONEDL | {'mmcv-lite': '2.1.0'},
            (*COMMON, 'mmcv/__init__.py'),
            ('pip uninstall -y mmcv-lite && pip install "setup', '"onedl-mmcv>=2.3,<2.4"'),
        ),
        (
            ORIGINAL | {'mmcv-lite': '2.1.0', 'mmdet': '3.3.0'},
            (*COMMON, 'mmcv/__init__.py'),
            ('mmdet need', 'pip uninstall -y mmcv-lite', '--no-build-isolation', 'mmcv==2.1.0'),
        ),
        (
            ONEDL | {'onedl-mmdetection': '3.5.1'},
            COMMON,
            ('found no mmcv', '"onedl-mmcv>=2.3,<2.4"'),
        ),
        (
            ORIGINAL | {'mmcv': '2.1.0', 'numpy': '2.2.6'},
            COMMON + OPERATORS,
            ('mmcv 2.1.0', 'numpy 2.2.6', 'pip install "numpy<2"'),
        ),
        (
            ORIGINAL | {'torch': '2.1.2', 'numpy': '2.2.6'},
            COMMON,
            ('torch 2.1.2', 'numpy 2.2.6', 'pip install "numpy<2"'),
        ),
        (ORIGINAL | {'torch': '2.6.0'}, COMMON, ('mmengine 0.10.7', 'pip install "torch<2.6"')),
        (ORIGINAL, ('cv2.py',), ('pkg_resources', 'pip install "setuptools<81"')),
        (LITE | {'torch': '2.6.0'}, COMMON, ('mmengine-lite 0.10.7', 'pip install "torch<2.6"')),
        (LITE, ('cv2.py',), ('pkg_resources', 'pip install "setuptools<81"')),
        (ONEDL, (), ('opencv', 'pip install opencv-python-headless')),
    ],
)
def test_wrong_combination_and_its_mend(
    tmp_path: Path, versions: dict[str, str], modules: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    (problem,), failure = show_problems(tmp_path, versions, modules)
    for part in parts:
        assert part in problem
    assert failure.startswith('ModuleNotFoundError: ') and failure.endswith(problem)


@pytest.mark.parametrize(
    ('module', 'needed_by', 'command'),
    [
        ('cv2', 'mmfocal.engine', 'pip install opencv-python-headless'),
        ('supervision', 'mmfocal.inference', 'pip install supervision'),
    ],
)
def test_failing_import_says_what_is_missing(module: str, needed_by: str, command: str) -> None:
    result = run(f'import sys; sys.modules[{module!r}] = None; import {needed_by}')
    assert result.returncode != 0 and command in result.stderr


def test_failing_import_says_that_operators_are_missing(tmp_path: Path) -> None:
    pytest.importorskip('mmdet')
    package = Path(find_spec('mmcv').origin).parent
    without = shutil.ignore_patterns('_ext*', 'ops', '__pycache__')  # as mmcv-lite is
    shutil.copytree(package, tmp_path / 'mmcv', ignore=without)
    result = run('import mmfocal.detection', path=tmp_path)
    assert result.returncode != 0
    assert 'need mmcv with compiled operators' in result.stderr
    assert 'MMCV_WITH_OPS=1 pip install' in result.stderr


def test_import_that_fails_for_its_own_reason_is_left_alone() -> None:
    with pytest.raises(ModuleNotFoundError, match='no_such_module'):
        require('no_such_module')
