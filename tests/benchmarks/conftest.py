# SPDX-License-Identifier: Apache-2.0
"""The scripts of ``benchmarks/`` as modules, and digit scenes to load."""

import csv
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch

from mmfocal.datasets.digit_scenes import DigitSceneParams, build

FOLDER = Path(__file__).resolve().parents[2] / 'benchmarks'
sys.path.insert(0, str(FOLDER))  # as if a script were started there; child processes inherit it


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """The scripts set the number of threads of the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time each step once and the machine with small sizes, because speed is not tested."""
    monkeypatch.delenv('GLIBC_TUNABLES', raising=False)  # its settings keep freed memory resident
    measure = import_module('measure')
    monkeypatch.setattr(measure.alternate, '__defaults__', (0.0,))
    monkeypatch.setattr(measure, 'SIDES', {'cpu': 512})
    monkeypatch.setattr(measure, 'COPIED', 2 * measure.MIB)


@pytest.fixture(scope='session')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with 8 training scenes."""
    root = tmp_path_factory.mktemp('scenes') / 'digit_scenes'
    build(root, DigitSceneParams(train=8, val=2))
    return root


@pytest.fixture
def read_rows() -> Callable[[Path], list[dict[str, str]]]:
    """Rows of a CSV file, read without the code that wrote it."""

    def read(path: Path) -> list[dict[str, str]]:
        with path.open(newline='') as file:
            return list(csv.DictReader(file))

    return read
