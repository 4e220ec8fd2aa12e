# SPDX-License-Identifier: Apache-2.0
"""Verdicts on hand-made files."""

import csv
import re
from itertools import product
from pathlib import Path

import backbone
import compare
import measure
import pytest

COLUMNS = ('model', 'impl', 'mode', 'height', 'ms', 'ratio', 'memory_ratio', 'baseline', 'date')
SWIN = ('', 'infer', 8, 1, 1)


def write(path: Path, *rows: tuple) -> Path:
    """A file with rows of impl (empty for Swin), mode, ms, ratio and ratio of memory."""
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for impl, mode, *numbers in rows:
            model = 'focal_tiny' if impl else 'swin_tiny'
            writer.writerow((model, impl, mode, 224, *numbers, 'swin_tiny', path.stem))
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    rows = (SWIN, ('sdpa', 'infer', 10, 1.2, 0.8), ('sdpa', 'train', 30, 1.5, 0.9))
    return write(tmp_path / 'old.csv', *rows)


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
    assert compare.main([str(old), str(write(tmp_path / 'new.csv', SWIN, row))]) == status, name
    printed = capsys.readouterr().out
    assert 'focal_tiny sdpa infer 224' in printed
    assert 'train' not in printed  # was not measured again
    assert '│ swin_tiny' not in printed
    assert ('WORSE' in printed) == (name in ('slower', 'hungrier'))
    assert ('no longer runs' in printed) == (name == 'does not run')


def test_baseline_that_fails(old, tmp_path, capsys):
    """A baseline that fails says nothing about Focal, which runs."""
    failed, infer = ('', 'infer', '', '', ''), ('sdpa', 'infer', 10, '', '')
    new = write(tmp_path / 'new.csv', failed, infer, ('sdpa', 'train', 30, 1.5, 0.9))
    assert compare.main([str(old), str(new)]) == 0
    printed = capsys.readouterr().out
    assert 'no longer runs' not in printed and 'no baseline' in printed
    assert '0 of 2 ratios grew by' in printed
    new = write(tmp_path / 'new.csv', failed, infer)
    with pytest.raises(ValueError, match='nothing to compare'):
        compare.main([str(old), str(new)])


def test_candidate_that_fails_without_a_ratio(old, tmp_path, capsys):
    write(old, ('sdpa', 'infer', 10, '', ''))
    new = write(tmp_path / 'new.csv', SWIN, ('sdpa', 'infer', '', '', ''))
    assert compare.main([str(old), str(new)]) == 1
    assert 'no longer runs' in capsys.readouterr().out


def test_baselines_alone_are_no_success(old, tmp_path):
    new = write(tmp_path / 'new.csv', SWIN, ('auto', 'infer', 10, 1.2, 0.8))
    with pytest.raises(ValueError) as caught:
        compare.main([str(old), str(new)])
    message = str(caught.value)
    assert 'nothing to compare' in message and 'same backend, size, dtype and mode' in message
    assert f'{old} has:\n  focal_tiny sdpa infer 224 swin_tiny\n' in message
    assert f'{new} has:\n  focal_tiny auto infer 224 swin_tiny' in message
    assert '  swin_tiny' not in message


@pytest.mark.parametrize(
    'row',
    [
        dict(model='swin_tiny', impl='', baseline='timm_swin_tiny'),
        dict(impl='window', baseline='window'),
        dict(config='swin_t_maskrcnn_1x', baseline='swin_t_maskrcnn_1x'),
    ],
)
def test_baselines_of_all_benchmarks(row, tmp_path):
    path = tmp_path / 'rows.csv'
    measure.write_csv(path, [row | dict(ms=10.0, ratio=1.1)])
    with pytest.raises(ValueError, match='nothing to compare'):
        compare.find_changes(path, path)


def test_documented_example(repo_root, tmp_path):
    """The candidates that the page measures before it compares are in the committed file."""
    page = (repo_root / 'docs/performance.md').read_text()
    command = re.search(r'^python benchmarks/backbone.py (.* --csv new.csv)$', page, re.MULTILINE)
    old = re.search(r'^python benchmarks/compare.py (\S+) new.csv$', page, re.MULTILINE)
    args = backbone.parse_args([*command[1].split(), '--device', 'cpu'])
    rows = []
    for size, mode in product(args.sizes, args.modes):
        how = dict(size=size, dtype='fp32', mode=mode, runtime='eager')
        for case in backbone.list_cases(args, **how):
            unmeasured = dict.fromkeys(('times', 'memory', 'baseline_memory', 'first', 'note'))
            unmeasured['baseline_times'] = None
            row = backbone.make_row(case, 'swin_tiny', **unmeasured)
            rows.append(row | dict(ms=1.0, ratio=1.0))
    measure.write_csv(tmp_path / 'new.csv', rows)
    changes = compare.find_changes(repo_root / old[1], tmp_path / 'new.csv')
    with (repo_root / old[1]).open() as file:
        measured = [row for row in csv.DictReader(file) if row['impl'] and row['ratio']]
    assert len(measured) >= 3  # a row is rejected if the machine was busy
    assert len(changes) == len(measured)


def test_tolerance(old, tmp_path, capsys):
    new = str(write(tmp_path / 'new.csv', SWIN, ('sdpa', 'infer', 10, 1.3, 0.8)))
    assert compare.main([str(old), new]) == 0
    assert compare.main([str(old), new, '--tolerance', '0.05']) == 1
    assert '1 of 2 ratios grew by more than 5%' in capsys.readouterr().out


def test_errors(old, tmp_path, capsys):
    other = write(tmp_path / 'other.csv', ('chunked', 'infer', 10, 1.3, 0.8))
    with pytest.raises(ValueError, match='nothing to compare'):
        compare.main([str(old), str(other)])
    other.write_text('config,images_per_s\na,1\n')
    with pytest.raises(ValueError, match="no column 'ratio'"):
        compare.main([str(old), str(other)])
    with pytest.raises(FileNotFoundError, match='absent'):
        compare.main([str(old), 'absent.csv'])
    with pytest.raises(SystemExit):
        compare.main([str(old), str(old), '--tolerance', '-1'])
    assert 'must not be negative' in capsys.readouterr().err
