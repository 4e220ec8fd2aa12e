# SPDX-License-Identifier: Apache-2.0
"""Code in the documentation is written as code elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

import mmfocal

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md'), *ROOT.glob('configs/**/*.md')]


def test_python_blocks_are_formatted(tmp_path: Path) -> None:
    for page in PAGES:
        blocks = re.findall(r'```python\n(.+?)```', page.read_text(), re.DOTALL)
        for index, block in enumerate(blocks):
            (tmp_path / f'{page.stem}_{index}.py').write_text(block)
    assert list(tmp_path.iterdir())
    options = ['--config', str(ROOT / 'pyproject.toml'), '--diff', str(tmp_path)]
    done = subprocess.run(
        [sys.executable, '-m', 'ruff', 'format', *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_pictures_of_the_readme_are_absolute_and_exist() -> None:
    pictures = re.findall(r'!\[[^]]*\]\(([^)]+)\)', (ROOT / 'README.md').read_text())
    assert pictures
    for address in pictures:
        path = address.removeprefix('https://raw.githubusercontent.com/mmfocal/mmfocal/main/')
        assert path != address, f'PyPI cannot show {address}'
        assert (ROOT / path).is_file(), path


def test_versions_and_dates_agree() -> None:
    version, date = re.search(
        r'^## (\d\S*) - (\S+)$', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE
    ).groups()
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == version == mmfocal.__version__
    assert citation['date-released'] == date
