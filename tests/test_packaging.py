# SPDX-License-Identifier: Apache-2.0
"""Tests of what a wheel of the project carries and of what it needs."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import mmdet
import pytest

import mmfocal
from mmfocal.datasets.digit_scenes import DigitSceneParams, build

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'triton'):
            raise ModuleNotFoundError(f'{name} is blocked', name=name)

sys.meta_path.insert(0, Blocker())
"""
PACKAGED = ('setup.py', 'pyproject.toml', 'LICENSE', 'README.md', 'model-index.yml')


# what only a checkout has a use for
NOT_IN_MIM = {'setup_env.sh', 'run_tests.sh', 'quickstart.sh', 'dev'}


def run_python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """Run Python, return what it printed; ``path`` comes before the installed packages."""
    env = os.environ if path is None else {**os.environ, 'PYTHONPATH': str(path)}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope='module')
def source(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, as building writes beside them, with one more config."""
    copy = tmp_path_factory.mktemp('source')
    for name in PACKAGED:
        shutil.copy2(repo_root / name, copy / name)
    for name in ('mmfocal', 'configs', 'tools'):
        shutil.copytree(
            repo_root / name, copy / name, ignore=shutil.ignore_patterns('.mim', '__pycache__')
        )
    probe = copy / 'configs' / 'probe' / 'base.py'
    probe.parent.mkdir()
    probe.write_text('probe = 42\n')
    return copy


@pytest.fixture(scope='module')
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds, after a build that left a module since removed."""
    stale = source / 'build' / 'lib' / 'mmfocal' / 'removed.py'
    stale.parent.mkdir(parents=True)
    stale.touch()
    out = tmp_path_factory.mktemp('wheel')
    options = ['--no-deps', '--no-build-isolation', '--wheel-dir', str(out), str(source)]
    run_python('-m', 'pip', 'wheel', *options, cwd=out)
    (built,) = out.glob('mmfocal-*.whl')
    return built


@pytest.fixture(scope='module')
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed and nothing else."""
    target = tmp_path_factory.mktemp('installed')
    options = ['--no-deps', '--target', str(target), str(wheel)]
    run_python('-m', 'pip', 'install', *options, cwd=target)
    return target


def test_wheel_carries_all_sources_configs_and_tools(source: Path, wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    sources = [
        path
        for name in ('*.py', '*.yml', 'py.typed')
        for path in source.glob(f'mmfocal/**/{name}')
    ]
    expected = {str(path.relative_to(source)) for path in sources}
    for folder in ('configs', 'tools'):
        files = [path for path in source.glob(f'{folder}/**/*') if path.is_file()]
        files = [path for path in files if not NOT_IN_MIM & set(path.parts)]
        expected |= {f'mmfocal/.mim/{path.relative_to(source)}' for path in files}
    assert 'mmfocal/.mim/tools/train.py' in expected
    expected.add('mmfocal/.mim/model-index.yml')
    assert {name for name in packed if name.startswith('mmfocal/')} == expected
    assert any(re.fullmatch(r'mmfocal-.+\.dist-info/(licenses/)?LICENSE', name) for name in packed)


def test_building_leaves_the_package_as_it_was(source: Path, wheel: Path) -> None:
    assert not (source / 'mmfocal' / '.mim').exists()


def test_metadata_forces_no_mm_library(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
    lines = archive.read(name).decode().splitlines()
    assert f'Version: {mmfocal.__version__}' in lines
    required = [line for line in lines if line.startswith('Requires-Dist') and 'extra' not in line]
    assert required == ['Requires-Dist: numpy<3,>=1.26', 'Requires-Dist: torch>=2.1.2']
    extras = {line.split()[1] for line in lines if line.startswith('Provides-Extra')}
    assert extras == {'det', 'seg', 'cls', 'all', 'dev', 'labels', 'track', 'vis'}
    for extra in ('det', 'seg', 'cls', 'all'):  # the digit scenes of every task need it
        assert f'Requires-Dist: pycocotools>=2.0.6; extra == "{extra}"' in lines
    (name,) = (name for name in archive.namelist() if name.endswith('entry_points.txt'))
    assert 'mmfocal = mmfocal.cli:main' in archive.read(name).decode().splitlines()


def test_import_needs_torch_and_mmengine_only(installed: Path, tmp_path: Path) -> None:
    code = (
        BLOCKER + 'import mmfocal; from mmengine.registry import MODELS;'
        "print(mmfocal.__file__, mmfocal.__version__, 'FocalTransformer' in MODELS)"
    )
    printed = run_python('-c', code, cwd=tmp_path, path=installed).split()[-3:]
    assert printed == [str(installed / 'mmfocal/__init__.py'), mmfocal.__version__, 'True']


def test_installed_configs_serve_as_bases(installed: Path, tmp_path: Path) -> None:
    config = tmp_path / 'mine.py'
    config.write_text("_base_ = __import__('mmfocal') and 'mmfocal::probe/base.py'\nmine = 1\n")
    code = (
        'from mmengine import Config;'
        f'cfg = Config.fromfile({str(config)!r}); print(cfg.probe, cfg.mine)'
    )
    assert run_python('-c', code, cwd=tmp_path, path=installed).split()[-2:] == ['42', '1']


@pytest.mark.slow
def test_names_work_in_the_hosts_tools(installed: Path, tmp_path: Path) -> None:
    build(tmp_path / 'data/digit_scenes', DigitSceneParams(train=4, val=2))
    mine = tmp_path / 'mine.py'
    mine.write_text(
        "_base_ = __import__('mmfocal').config('quickstart/focal_nano_maskrcnn')\n"
        'train_cfg = dict(max_iters=1, val_interval=1)\n'
    )
    tools = Path(mmdet.__file__).parent / '.mim/tools'
    printed = run_python(
        str(tools / 'misc/print_config.py'), 'mine.py', cwd=tmp_path, path=installed
    )
    assert "type='FocalTransformer'" in printed and 'max_iters=1' in printed
    run_python(str(tools / 'train.py'), 'mine.py', cwd=tmp_path, path=installed)
    assert (tmp_path / 'work_dirs/mine/iter_1.pth').exists()
    code = (
        'import mmfocal.hub, mmpretrain; from mmdet.apis import DetInferencer;'
        'from mmengine.hub import get_config; print(mmfocal.__file__);'
        "print(type(DetInferencer('mine.py', device='cpu').model.backbone).__name__);"
        "print(DetInferencer('focal_nano_retinanet', device='cpu').model.bbox_head.num_classes);"
        "print('focal_t_in1k' in mmpretrain.list_models());"
        "print(get_config('mmfocal::detection/focal_t_atss_3x.py').model.type)"
    )
    shown = run_python('-c', code, cwd=tmp_path, path=installed).splitlines()
    expected = [str(installed / 'mmfocal/__init__.py'), 'FocalTransformer', '10', 'True', 'ATSS']
    assert [line for line in shown if line in expected] == expected
    for module, inferencer, name in (  # a process each: inferencers leave their default scope
        ('mmseg.apis', 'MMSegInferencer', 'focal_nano_upernet'),
        ('mmpretrain', 'ImageClassificationInferencer', 'focal_t_in1k'),
    ):
        code = f'import mmfocal.hub; from {module} import {inferencer} as Inferencer;'
        code += f"print(type(Inferencer('{name}', device='cpu').model.backbone).__name__)"
        assert 'FocalTransformer' in run_python('-c', code, cwd=tmp_path, path=installed)
    command = ['-m', 'mmfocal.cli', 'predict', 'work_dirs/mine', 'data/digit_scenes/val']
    run_python(*command, '--score-thr', '0', cwd=tmp_path, path=installed)
    assert len(list((tmp_path / 'predictions/vis').glob('*.png'))) == 2
