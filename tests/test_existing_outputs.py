# SPDX-License-Identifier: Apache-2.0
"""Existing files are kept, unless they may be replaced; inputs always are."""

from argparse import ArgumentParser
from pathlib import Path

import pytest

from mmfocal.existing_outputs import (
    add_overwrite_argument,
    check_not_inputs,
    check_outputs,
    replacement,
    restored_on_failure,
)


def test_files_are_kept(tmp_path):
    old, new = tmp_path / 'old.png', tmp_path / 'new.png'
    old.touch()
    (tmp_path / 'dangling').symlink_to('nowhere')
    check_outputs([new], overwrite=False, inputs=[old, 'https://example.org/a.png', 'a\0b'])
    check_outputs([old], overwrite=True)
    for path in (old, tmp_path / 'dangling'):
        with pytest.raises(FileExistsError, match=f'{path} exists; --overwrite replaces it'):
            check_outputs([new, path], overwrite=False)
    with pytest.raises(IsADirectoryError, match='is a folder; expected the name of a file'):
        check_outputs([tmp_path], overwrite=True)
    parser = ArgumentParser()
    add_overwrite_argument(parser)
    assert parser.parse_args(['--overwrite']).overwrite and not parser.parse_args([]).overwrite


@pytest.mark.parametrize('kind', ['same', 'other spelling', 'symbolic link', 'hard link'])
def test_inputs_are_never_replaced(tmp_path, kind):
    mine, other = tmp_path / 'mine.png', tmp_path / 'other.png'
    mine.touch()
    if kind == 'symbolic link':
        other.symlink_to(mine)
    elif kind == 'hard link':
        other.hardlink_to(mine)
    else:
        other = mine if kind == 'same' else tmp_path / '.' / '..' / tmp_path.name / mine.name
    with pytest.raises(FileExistsError, match=r'is the input .*mine\.png; choose another output'):
        check_outputs([other], overwrite=True, inputs=[mine])
    with pytest.raises(FileExistsError, match='is the input'):
        check_not_inputs([other], [mine])


def test_replacements_are_told(tmp_path):
    folder, file = tmp_path / 'folder', tmp_path / 'folder' / 'a.txt'
    assert replacement(folder) is None
    folder.mkdir()
    assert replacement(folder) is None and replacement(file) is None
    file.touch()
    assert replacement(folder) == f'{folder} is not empty: files of the same name are replaced'
    assert replacement(file) == f'{file} exists and is replaced'


def test_files_are_restored_on_failure(tmp_path):
    old, new = tmp_path / 'old', tmp_path / 'new'
    old.write_text('old')

    def write(fails: bool) -> None:
        with restored_on_failure([old, new, tmp_path / 'unwritten']):
            for path in (old, new):
                Path(path).write_text('changed')
            if fails:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(fails=True)
    assert old.read_text() == 'old' and not new.exists()
    write(fails=False)
    assert old.read_text() == new.read_text() == 'changed'
