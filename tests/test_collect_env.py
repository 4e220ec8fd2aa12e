# SPDX-License-Identifier: Apache-2.0
"""Tests of ``mmfocal.collect_env``."""

import subprocess
import sys
from importlib import metadata

import pytest
import torch

import mmfocal
from mmfocal import collect_env


def test_versions_are_those_installed() -> None:
    env = collect_env.collect()
    assert env['mmfocal'].startswith(mmfocal.__version__)
    assert env['torch'].startswith(torch.__version__)
    assert env['numpy'].startswith(metadata.version('numpy'))
    assert 'onedl-mmengine' in env['mmengine'] or '(from mmengine' in env['mmengine']
    assert env['mmcv ops'].startswith('compiled by')
    assert env['problems'] == 'none known'


@pytest.mark.parametrize(
    ('name', 'value'), [('MMFOCAL_ATTN_IMPL', 'sdpa'), ('MMFOCAL_CPU_LINEAR', 'mkl')]
)
def test_chosen_backends_are_shown(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.delenv(name, raising=False)
    assert collect_env.collect()[name] == 'not set'
    monkeypatch.setenv(name, value)
    assert collect_env.collect()[name] == value


def test_absent_and_broken_libraries_are_reported() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['mmcv', 'mmdet', 'cv2', 'triton']))"
    run = f"{blocked}; import runpy; runpy.run_module('mmfocal.collect_env', run_name='__main__')"
    result = subprocess.run([sys.executable, '-c', run], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = dict(line.split(':', 1) for line in result.stdout.splitlines() if ':' in line)
    assert 'import fails: ModuleNotFoundError' in rows['mmdet']
    assert 'not usable' in rows['mmcv ops']
    assert 'pip install opencv-python-headless' in result.stdout


def test_library_of_no_distribution_is_not_installed() -> None:
    assert collect_env._library('no_such_library', []) == 'not installed'
