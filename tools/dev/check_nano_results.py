# SPDX-License-Identifier: Apache-2.0
"""Compare the last validation of small runs with the limits in ``nano_thresholds.json``.

Multi-scale tests of a run are also compared with its single-scale validation.
"""

import argparse
import json
import sys
from pathlib import Path

from mmfocal.analysis.run_log import read_run_log, read_tests

THRESHOLDS = Path(__file__).with_name('nano_thresholds.json')
MULTI_SCALE = ('focal_nano_maskrcnn_jitter',)
MULTI_SCALE_LOSS = 0.02  # maximum drop compared with the single scale


def _below(found: dict[str, float], limits: dict[str, float], what: str) -> list[str]:
    return [
        f'{what}{metric} is {found.get(metric, "missing")}, expected at least {limit}'
        for metric, limit in limits.items()
        if found.get(metric, -1) < limit
    ]


def shortfalls(work_dir: Path, limits: dict[str, float]) -> list[str]:
    """Return one line per metric of a run that is missing or below its limit.

    Args:
        work_dir: Work directory of the run.
        limits: Minimum value of each metric.
    """
    val = read_run_log(work_dir).val
    single = val[max(val)] if val else {}
    found = _below(single, limits, f'{work_dir.name}: ')
    if work_dir.name in MULTI_SCALE:
        tests = [test.metrics for test in read_tests(work_dir) if test.is_multi_scale]
        least = {key: round(single.get(key, 0) - MULTI_SCALE_LOSS, 3) for key in limits}
        found += _below(tests[-1] if tests else {}, least, f'{work_dir.name}: multi-scale ')
    return found


def main() -> None:
    """Exit with the list of shortfalls, or print that there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'work_dirs', type=Path, nargs='+', help='work directories, named after their configs'
    )
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
