# SPDX-License-Identifier: Apache-2.0
"""Detect regressions: compare a new CSV with an older one, such as those in ``results/``.

Times of different days or machines are not comparable, but ratios to a baseline of the same run
are. The exit status is 1 if a ratio of time or memory grew by more than the tolerance, or if a
candidate no longer runs.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import measure

# Columns that identify a row, of all benchmarks.
KEYS = ('config', 'model', 'impl', 'dtype', 'mode', 'runtime', 'direction', 'stage', 'height')
KEYS += ('width', 'batch', 'focal_windows', 'workers', 'baseline')
RATIOS = ('ratio', 'memory_ratio')


class Change(NamedTuple):
    """One ratio of one candidate; None if it, or its baseline, did not run."""

    name: str
    what: str
    old: float | None
    new: float | None
    runs: bool

    @property
    def growth(self) -> float | None:
        return None if None in (self.old, self.new) else self.new / self.old - 1

    def verdict(self, tolerance: float) -> str:
        if not self.runs:
            return 'no longer runs'
        if self.growth is None:
            return 'no baseline'
        return 'WORSE' if self.growth > tolerance else 'ok'


def _is_baseline(row: dict[str, str]) -> bool:
    """Return whether a row is a baseline: rows of Swin have no backend."""
    names = (row.get('config'), row.get('model'), row.get('impl'))
    return row['baseline'] in names or row.get('impl') == ''


def _candidates(path: Path) -> dict[str, dict[str, str]]:
    """Return rows by name, without baselines, whose ratios are constant."""
    rows = measure.read_csv(path)
    if 'ratio' not in rows[0]:
        raise ValueError(f"{path} has no column 'ratio'; expected a benchmark with a baseline")
    return {
        ' '.join(filter(None, (row.get(key) for key in KEYS))): row
        for row in rows
        if not _is_baseline(row)
    }


def _number(row: dict[str, str], name: str) -> float | None:
    return float(row[name]) if row.get(name) else None


def _changes_of(name: str, old: dict[str, str], new: dict[str, str]) -> list[Change]:
    """Return the changes of a candidate that ran."""
    runs = bool(new['ms'])
    changes = [Change(name, what, _number(old, what), _number(new, what), runs) for what in RATIOS]
    # memory is measured on demand, so it may be absent
    return [change for change in changes if change.what == 'ratio' or change.growth is not None]


def _listed(names: Iterable[str]) -> str:
    return '\n'.join(f'  {name}' for name in names) or '  none'


def find_changes(old_path: Path, new_path: Path) -> list[Change]:
    """Return the changes of all candidates that both files have.

    Args:
        old_path: CSV to compare with.
        new_path: CSV just measured.

    Raises:
        ValueError: If a file has no ratios, or the files share no comparable candidate.
    """
    old, new = _candidates(old_path), _candidates(new_path)
    ran = sorted(name for name in old.keys() & new.keys() if old[name]['ms'])
    changes = [change for name in ran for change in _changes_of(name, old[name], new[name])]
    if all(change.runs and change.growth is None for change in changes):
        raise ValueError(
            'nothing to compare: both files need a candidate, not a baseline, with the same '
            'backend, size, dtype and mode, and with a ratio to the same baseline\n'
            f'{old_path} has:\n{_listed(old)}\n{new_path} has:\n{_listed(new)}'
        )
    return changes


def main(argv: Sequence[str] | None = None) -> int:
    """Print all changes; the exit status is 1 if one is too large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('old', type=Path, help='CSV to compare with')
    parser.add_argument('new', type=Path, help='CSV just measured')
    parser.add_argument('--tolerance', type=float, default=0.15, help='(default: 0.15)')
    args = parser.parse_args(argv)
    if args.tolerance < 0:
        parser.error(f'--tolerance must not be negative, got {args.tolerance}')
    changes = find_changes(args.old, args.new)
    verdicts = [change.verdict(args.tolerance) for change in changes]
    table = []
    for change, verdict in zip(changes, verdicts, strict=True):
        growth = '' if change.growth is None else f'{change.growth:+.0%}'
        table.append([*change[:-1], growth, verdict])
    measure.print_table(
        'Ratio to the baseline', ('candidate', 'ratio of', 'old', 'new', 'change', ''), table
    )
    compared = [verdict for verdict in verdicts if verdict != 'no baseline']
    slower = len(compared) - compared.count('ok')
    print(f'{slower} of {len(compared)} ratios grew by more than {args.tolerance:.0%}.')
    return int(slower > 0)


if __name__ == '__main__':
    sys.exit(main())
