# SPDX-License-Identifier: Apache-2.0
"""Configs that raise errors are named, with the line."""

import re
from pathlib import Path

import pytest

from mmfocal.engine import InputError, read_config
from mmfocal.errors import MissingFileError

BASE = 'size = 3\nmodel = dict(head=dict(type="Head"))\n'
ERRORS = [
    # (content of own.py, words of the error after its folder)
    ('a = 1\nmodel = dict(\n', r"own\.py, line 2: syntax error: '\(' was never closed"),
    ('  a = 1\n', r'own\.py, line 1: syntax error: unexpected indent'),
    ('a = 1\nb = undefined\n', r"own\.py, line 2: NameError: name 'undefined' is not defined"),
    ('a = 1\n\nb = 1 / 0\n', r'own\.py, line 3: ZeroDivisionError: division by zero'),
    ('def f():\n    return [][0]\na = f()\n', r'own\.py, line 2: IndexError: list index'),
    ('import absent_module\n', r"own\.py: ModuleNotFoundError: .*own\.py, line 1 for No mod"),
    ('open("absent.txt")\n', r"own\.py, line 1: FileNotFoundError: .*absent\.txt"),
    ("custom_imports = dict(imports=['absent_module'])\n",
     r"own\.py: custom_imports: No module named 'absent_module'; is its folder in PYTHONPATH\?"),
    ("_base_ = 'absent.py'\n", r'own\.py: FileNotFoundError: .*absent\.py'),
    ("_base_ = 'own.py'\n", r'own\.py.*: RecursionError: '),
    ("_base_ = 3\n", r'own\.py: TypeError: '),
    ("_base_ = 'mmfocal::detection/absent.py'\n", r'own\.py: .*absent'),
    ("_base_ = 'broken.py'\n", r"broken\.py, line 2: NameError: name 'undefined'"),
    ("_base_ = ['base.py', 'other.py']\n", r'own\.py: KeyError: .*Duplicate keys: .*size'),
    ("_base_ = 'base.py'\nmodel = dict(head=[1])\na = _base_.sise\n", r'own\.py.*: .*sise'),
    ("_base_ = 'base.py'\nmodel = 3\n", ''),
    ("_base_ = 'base.py'\nmodel = dict(head=dict(type=dict(a=1)))\n", r'own\.py: TypeError: '),
    ("text = 'a'\n", r'own\.py: KeyError: .*text is reserved'),
    ('from mmengine.config import read_base\nwith read_base():\n    from .absent import *\n',
     r'own\.py: ConfigParsingError: .*absent\.py not found'),
    ('from mmengine.config import read_base\nwith read_base():\n    from .broken import *\n',
     r"broken\.py, line 2: NameError: name 'undefined'"),
]  # fmt: skip


@pytest.mark.parametrize(('text', 'words'), ERRORS)
def test_errors_of_configs_name_file_and_line(tmp_path, text, words):
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'other.py').write_text('size = 4\n')
    (tmp_path / 'broken.py').write_text('a = 1\nb = undefined\n')
    (tmp_path / 'own.py').write_text(text)
    if not words:
        read_config(tmp_path / 'own.py')
        return
    with pytest.raises((InputError, MissingFileError)) as error:
        read_config(tmp_path / 'own.py')
    assert re.match(rf'{re.escape(str(tmp_path))}/{words}', str(error.value))


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        ('own.pth', b'\x80\x02', 'Only py/yml/yaml/json type'),
        ('own.py', b'a = "\xff"\n', "UnicodeDecodeError: 'utf-8' codec"),
        ('own.json', b'{', 'JSONDecodeError'),
        ('own.yaml', b'- 1\n', 'AttributeError'),
    ],
)
def test_files_that_are_no_configs_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf'{name}: .*{words}'):
        read_config(tmp_path / name)
    with pytest.raises(MissingFileError, match=r'config .* does not exist'):
        read_config(Path(tmp_path, 'absent.py'))
