# SPDX-License-Identifier: Apache-2.0
"""Tests of ``mmfocal.settings``, and of what importing the package leaves alone."""

import logging
import re
from pathlib import Path

import pytest

import mmfocal.models  # noqa: F401  # the layer that routes messages
from mmfocal import settings
from mmfocal.errors import InputError

PREFIXES = r'\b(?:MMFOCAL_[A-Z_]+|FOCAL_\w*CKPT)\b'


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = ('auto', 'mkl')
    assert settings.choice(settings.CPU_LINEAR, allowed) == 'auto'
    monkeypatch.setenv(settings.CPU_LINEAR, '')
    assert settings.choice(settings.CPU_LINEAR, allowed) == 'auto'
    monkeypatch.setenv(settings.CPU_LINEAR, 'mkl')
    assert settings.choice(settings.CPU_LINEAR, allowed) == 'mkl'
    monkeypatch.setenv(settings.CPU_LINEAR, 'MKL')
    with pytest.raises(InputError, match=r"MMFOCAL_CPU_LINEAR must be .* auto, mkl, got 'MKL'"):
        settings.choice(settings.CPU_LINEAR, allowed)


@pytest.mark.parametrize(('value', 'expected'), [('1', True), ('True', True), ('0', False)])
def test_switch(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.delenv(settings.TRITON_TUNE, raising=False)
    assert not settings.is_on(settings.TRITON_TUNE)
    monkeypatch.setenv(settings.TRITON_TUNE, value)
    assert settings.is_on(settings.TRITON_TUNE) is expected


def test_variables_of_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('SLURM_PROCID', '3')
    monkeypatch.setenv('SLURM_NTASKS', '8 ')
    assert settings.rank('slurm') == 3 and settings.rank('none') == 0
    with pytest.raises(InputError, match="SLURM_NTASKS must be an integer, got '8 '"):
        settings.world_size('slurm')


def test_variables_are_read_in_one_place(repo_root: Path) -> None:
    package = repo_root / 'mmfocal'
    readers = {
        str(path.relative_to(package))
        for path in package.rglob('*.py')
        if '.mim' not in path.parts
        and re.search(r'\benviron\b|\bgetenv', path.read_text(encoding='utf-8'))
    }
    assert readers == {'settings.py'}


def test_every_variable_is_documented(repo_root: Path) -> None:
    page = (repo_root / 'docs/environment.md').read_text(encoding='utf-8')
    first_cells = re.findall(r'^\| (`[^|]+`) \|', page, re.MULTILINE)
    listed = set(re.findall(r'`(\w+)`', ' '.join(first_cells)))
    sources = [
        path
        for folder in ('mmfocal', 'configs', 'tools')
        for path in (repo_root / folder).rglob('*')
        if path.suffix in ('.py', '.sh') and '.mim' not in path.parts
    ]
    used = {name for path in sources for name in re.findall(PREFIXES, path.read_text())}
    read = set(re.findall(r"'([A-Z][A-Z_]+)'", Path(settings.__file__).read_text()))
    assert {*settings.NAMES, 'RANK', 'SLURM_NODELIST'} <= read
    assert read | used <= listed
    own = {name for name in listed if re.fullmatch(PREFIXES, name)}
    assert own <= used, f'read nowhere: {own - used}'


def test_import_leaves_logging_alone() -> None:
    own = [name for name in logging.root.manager.loggerDict if name.split('.')[0] == 'mmfocal']
    assert own, 'nothing that can be changed'
    for logger in map(logging.getLogger, own):
        assert (logger.level, logger.handlers, logger.propagate) == (logging.NOTSET, [], True)
