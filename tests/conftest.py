# SPDX-License-Identifier: Apache-2.0
"""Fixtures and settings of every test."""

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import mmengine.config.utils
import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

pytest.register_assert_rewrite('tests.helpers')  # their asserts show values too
os.environ.setdefault('MPLBACKEND', 'Agg')  # before anything imports matplotlib
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'  # before anything imports Triton or reads the variable


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a newer PyTorch or Triton; see ``tests/helpers/versions.py``."""
    from tests.helpers.versions import lacking

    for item in items:
        reason = lacking(item)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _same_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed torch and hide the user's choice of implementations."""
    monkeypatch.delenv('MMFOCAL_ATTN_IMPL', raising=False)
    monkeypatch.delenv('MMFOCAL_CPU_LINEAR', raising=False)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_default_scope() -> None:
    """Forget the default scopes of runs that earlier tests, and fixtures of modules, have made."""
    DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def _no_visualizer() -> None:
    """Forget earlier runs' visualizers: runs of one second share a name, and so one folder."""
    for visualizer in (Visualizer, *Visualizer.__subclasses__()):
        visualizer._instance_dict.clear()


@pytest.fixture
def count_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType, str], list]:
    """Makes a list that grows with each call of a module's function, which still runs."""

    def count(module: ModuleType, name: str) -> list:
        calls, original = [], getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: calls.append(args) or original(*args))
        return calls

    return count


@pytest.fixture(scope='session', autouse=True)
def _read_host_metafiles_once() -> Iterator[None]:
    """MMEngine reads every metafile of a host library for each base that a config has there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmengine.config.utils, 'load', cache(mmengine.config.utils.load))
        yield


@pytest.fixture(scope='session')
def repo_root() -> Path:
    """The checkout that is being tested."""
    return Path(__file__).resolve().parents[1]
