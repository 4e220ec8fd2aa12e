# SPDX-License-Identifier: Apache-2.0
"""Compare the last validation of small runs with the limits in ``nano_thresholds.json``."""

import argparse
import json
import sys
from pathlib import Path

from mmfocal.analysis.run_log import read_run_log

THRESHOLDS = Path(__file__).with_name('nano_thresholds.json')


def shortfalls(work_dir: Path, limits: dict[str, float]) -> list[str]:
    """One line per metric of a run that is missing or below its limit.

    Args:
        work_dir: Work directory of the run.
        limits: Least value of each metric.
    """
    val = read_run_log(work_dir).val
    last = val[max(val)] if val else {}
    return [
        f'{work_dir.name}: {metric} is {last.get(metric, "missing")}, expected at least {limit}'
        for metric, limit in limits.items()
        if last.get(metric, -1) < limit
    ]


def main() -> None:
    """Exit with every shortfall, or say that there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dirs', type=Path, nargs='+', help='named after their configs')
    work_dirs = parser.parse_args().work_dirs
    thresholds = json.loads(THRESHOLDS.read_text())
    unknown = [str(path) for path in work_dirs if path.name not in thresholds]
    if unknown:
        sys.exit(f'error: {THRESHOLDS} has no limits for {", ".join(unknown)}')
    found = [line for path in work_dirs for line in shortfalls(path, thresholds[path.name])]
    if found:
        sys.exit('\n'.join(found))
    print(f'all of {len(work_dirs)} runs reach their limits')


if __name__ == '__main__':
    main()
