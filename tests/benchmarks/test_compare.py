# SPDX-License-Identifier: Apache-2.0
"""Verdicts on hand-made files."""

import csv
from pathlib import Path

import compare
import pytest

COLUMNS = ('model', 'impl', 'mode', 'height', 'ms', 'ratio', 'memory_ratio', 'date')


def write(path: Path, *rows: tuple) -> Path:
    """A file with rows of impl, mode, ms, ratio and ratio of memory."""
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for impl, mode, ms, ratio, memory_ratio in rows:
            writer.writerow(('focal_tiny', impl, mode, 224, ms, ratio, memory_ratio, path.stem))
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write(
        tmp_path / 'old.csv', ('sdpa', 'infer', 10, 1.2, 0.8), ('sdpa', 'train', 30, 1.5, 0.9)
    )


@pytest.mark.parametrize(
    ('name', 'row', 'status'),
    [
        ('the machine is slower', ('sdpa', 'infer', 50, 1.2, 0.8), 0),
        ('within the tolerance', ('sdpa', 'infer', 10, 1.37, 0.9), 0),
        ('faster', ('sdpa', 'infer', 10, 0.6, 0.4), 0),
        ('slower', ('sdpa', 'infer', 10, 1.39, 0.8), 1),
        ('hungrier', ('sdpa', 'infer', 10, 1.2, 0.93), 1),
        ('memory was not measured', ('sdpa', 'infer', 10, 1.2, ''), 0),
        ('does not run', ('sdpa', 'infer', '', '', ''), 1),
    ],
)
def test_verdicts(name, row, status, old, tmp_path, capsys):
    assert compare.main([str(old), str(write(tmp_path / 'new.csv', row))]) == status, name
    printed = capsys.readouterr().out
    assert 'focal_tiny sdpa infer 224' in printed
    assert 'train' not in printed  # was not measured again
    assert ('WORSE' in printed) == (name in ('slower', 'hungrier'))
    assert ('no longer runs' in printed) == (name == 'does not run')


def test_tolerance(old, tmp_path, capsys):
    new = str(write(tmp_path / 'new.csv', ('sdpa', 'infer', 10, 1.3, 0.8)))
    assert compare.main([str(old), new]) == 0
    assert compare.main([str(old), new, '--tolerance', '0.05']) == 1
    assert '1 of 2 ratios grew by more than 5%' in capsys.readouterr().out


def test_errors(old, tmp_path, capsys):
    other = write(tmp_path / 'other.csv', ('chunked', 'infer', 10, 1.3, 0.8))
    with pytest.raises(ValueError, match='no candidate in common'):
        compare.main([str(old), str(other)])
    other.write_text('config,images_per_s\na,1\n')
    with pytest.raises(ValueError, match="no column 'ratio'"):
        compare.main([str(old), str(other)])
    with pytest.raises(FileNotFoundError, match='absent'):
        compare.main([str(old), 'absent.csv'])
    with pytest.raises(SystemExit):
        compare.main([str(old), str(old), '--tolerance', '-1'])
    assert 'must not be negative' in capsys.readouterr().err
