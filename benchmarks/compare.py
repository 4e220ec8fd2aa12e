# SPDX-License-Identifier: Apache-2.0
"""Has it become slower? Compare a new CSV with an older one, such as those in ``results/``.

Times of two days or machines do not compare; ratios to a yardstick that was timed in the same run
do. The exit status is 1 if a ratio, of time or of memory, grew by more than the tolerance, or if
a candidate that ran no longer does.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import measure

# What tells rows apart, of whichever benchmark.
KEYS = ('config', 'model', 'impl', 'dtype', 'mode', 'runtime', 'direction', 'stage', 'height')
KEYS += ('width', 'batch', 'coarse', 'workers', 'yardstick')
RATIOS = ('ratio', 'memory_ratio')


class Change(NamedTuple):
    """One ratio of one candidate; ``new`` is None if it no longer runs."""

    name: str
    what: str
    old: float
    new: float | None

    @property
    def growth(self) -> float:
        return float('inf') if self.new is None else self.new / self.old - 1


def _by_name(path: Path) -> dict[str, dict[str, str]]:
    rows = measure.read_csv(path)
    if 'ratio' not in rows[0]:
        raise ValueError(f"{path} has no column 'ratio': it is of no benchmark with a yardstick")
    return {' '.join(filter(None, (row.get(key) for key in KEYS))): row for row in rows}


def find_changes(old_path: Path, new_path: Path) -> list[Change]:
    """Ratios of all candidates that both files have.

    Args:
        old_path: CSV to compare with.
        new_path: CSV just measured.

    Raises:
        ValueError: If a file has no ratios, or the files have no candidate in common.
    """
    old, new = _by_name(old_path), _by_name(new_path)
    changes = []
    for name in old.keys() & new.keys():
        for what in RATIOS:
            before, now = old[name].get(what), new[name].get(what)
            # memory is measured on demand, so that its absence says nothing
            if before and (now or what == 'ratio'):
                changes.append(Change(name, what, float(before), float(now) if now else None))
    if not changes:
        raise ValueError(f'{old_path} and {new_path} have no candidate in common')
    return sorted(changes)


def main(argv: Sequence[str] | None = None) -> int:
    """Print all changes; the exit status says whether one is too large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('old', type=Path, help='CSV to compare with')
    parser.add_argument('new', type=Path, help='CSV just measured')
    parser.add_argument('--tolerance', type=float, default=0.15, help='(default: 0.15)')
    args = parser.parse_args(argv)
    if args.tolerance < 0:
        parser.error(f'--tolerance must not be negative, got {args.tolerance}')
    changes = find_changes(args.old, args.new)
    slower = [change for change in changes if change.growth > args.tolerance]
    table = []
    for change in changes:
        verdict = 'ok'
        if change in slower:
            verdict = 'no longer runs' if change.new is None else 'WORSE'
        growth = '' if change.new is None else f'{change.growth:+.0%}'
        table.append([*change, growth, verdict])
    measure.print_table(
        'Ratio to the yardstick', ('candidate', 'ratio of', 'old', 'new', 'change', ''), table
    )
    print(f'{len(slower)} of {len(changes)} ratios grew by more than {args.tolerance:.0%}.')
    return int(bool(slower))


if __name__ == '__main__':
    sys.exit(main())
