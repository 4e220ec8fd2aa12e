# SPDX-License-Identifier: Apache-2.0
"""A folder to run the command lines in, with a few digit scenes under ``data/``."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmfocal.datasets.digit_scenes import DigitSceneParams, build

Run = Callable[..., str]


@pytest.fixture(scope='session')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with 16 training and 4 validation scenes."""
    root = tmp_path_factory.mktemp('scenes') / 'digit_scenes'
    build(root, DigitSceneParams(train=16, val=4))
    return root


@pytest.fixture
def workspace(tmp_path: Path, scenes: Path) -> Path:
    """Empty folder with the scenes where the shipped configs expect them."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'digit_scenes').symlink_to(scenes, target_is_directory=True)
    return tmp_path


@pytest.fixture
def environment(repo_root: Path) -> dict[str, str]:
    """Variables under which a child process finds this checkout and the test's own modules."""
    path = os.pathsep.join([str(repo_root), '.', os.environ.get('PYTHONPATH', '')])
    return {**os.environ, 'PYTHONPATH': path, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}


@pytest.fixture
def run(workspace: Path, repo_root: Path, environment: dict[str, str]) -> Run:
    """Run a tool of this repository in the workspace and return what it printed."""

    def run_tool(tool: str, *arguments: str | Path) -> str:
        starter = 'bash' if tool.endswith('.sh') else sys.executable
        command = [starter, str(repo_root / 'tools' / tool), *map(str, arguments)]
        done = subprocess.run(
            command,
            cwd=workspace,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    return run_tool
