# SPDX-License-Identifier: Apache-2.0
"""Write the tables of ``docs/performance.md`` from the CSV files in ``benchmarks/results``.

A table is between ``<!-- table: NAME -->`` and ``<!-- end -->``; NAME.csv is its file. If the file
does not exist, the page says so.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import measure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tools.dev.model_zoo.pages import Cell, Grid, markdown_table  # noqa: E402

PAGE = ROOT / 'docs' / 'performance.md'
RESULTS = ROOT / 'benchmarks' / 'results'
MARKED = re.compile(r'(<!-- table: (\w+) -->\n).*?(<!-- end -->)', re.DOTALL)
NAMES = {
    'cpu': 'CPU',
    'gpu': 'GPU',
    'threads': 'threads',
    'mmfocal': 'mmfocal',
    'torch': 'torch',
    'triton': 'triton',
    'mmpretrain': 'mmpretrain',
    'mmdet': 'mmdet',
    'timm': 'timm',
    'settings': 'environment',
    'date': 'date',
}

Value = Callable[[dict[str, str]], str]


def _text(name: str) -> Value:
    return lambda row: row[name]


def _number(name: str, factor: float = 1, unit: str = '') -> Value:
    def value(row: dict[str, str]) -> str:
        return measure.short(factor * float(row[name])) + unit if row[name] else ''

    return value


def _spread(row: dict[str, str]) -> str:
    least, greatest = (measure.short(float(row[key])) for key in ('ms_min', 'ms_max'))
    return f'{_number("ms")(row)} ({least} to {greatest})'


def _time(row: dict[str, str]) -> str:
    return _spread(row) if row['ms'] else row.get('note') or 'not run'


def _candidate(row: dict[str, str]) -> str:
    runtime = {'eager': '', 'compile': 'compiled', 'graph': 'CUDA graph'}[row['runtime']]
    return ' '.join(filter(None, (row['model'], row['impl'], runtime)))


def _image(row: dict[str, str]) -> str:
    return f'{row["height"]}x{row["width"]}, {row["batch"]}'


BACKBONE: dict[str, Value] = {
    'candidate': _candidate,
    'type': _text('dtype'),
    'mode': _text('mode'),
    'image, batch': _image,
    'ms per step (min to max)': _time,
    'images/s': _number('images_per_s'),
    'time / baseline': _number('ratio'),
    'memory, MiB': _number('memory_mib'),
    'memory / baseline': _number('memory_ratio'),
    'GMACs per image': _number('gmacs_per_image'),
    'utilization': _number('utilization', 100, ' %'),
    'first call, s': _number('first_s'),
}
ATTENTION: dict[str, Value] = {
    'backend': _text('impl'),
    'type': _text('dtype'),
    'pass': _text('direction'),
    'image, batch': _image,
    'stage': _text('stage'),
    'map': _text('map'),
    'keys': _text('keys'),
    'ms (min to max)': _time,
    'time / window': _number('ratio'),
    'GFLOP/s': _number('gflop_per_s'),
    'GB/s': _number('gbyte_per_s'),
    'of roofline': _number('of_roofline', 100, ' %'),
}
DETECTOR: dict[str, Value] = {
    'config': _text('config'),
    'data': _text('data'),
    'batch': _number('batch'),
    'megapixels': _number('megapixels'),
    'ms per step (min to max)': _time,
    'data, ms': _number('data_ms'),
    'forward, ms': _number('forward_ms'),
    'backward, ms': _number('backward_ms'),
    'optimizer, ms': _number('optimizer_ms'),
    'time / baseline': _number('ratio'),
    'memory, MiB': _number('memory_mib'),
    'memory / baseline': _number('memory_ratio'),
}
LOADER: dict[str, Value] = {
    'config': _text('config'),
    'data': _text('data'),
    'workers': _text('workers'),
    'images/s': _number('images_per_s'),
    'images/s per worker': _number('images_per_s_per_worker'),
}
BUSY: dict[str, Value] = {
    'beside': _text('beside'),
    'GOMP_SPINCOUNT': _text('spincount'),
    'image, batch': _image,
    'ms per step (min to max)': _time,
    'time / default': _number('ratio'),
}
CHECKS: dict[str, Value] = {
    'data': _text('data'),
    'splits': _text('splits'),
    'images': _text('images'),
    'objects': _text('objects'),
    'ms per check (min to max)': _time,
}
COMMITS: dict[str, Value] = {
    'mode': _text('mode'),
    'image, batch': _image,
    'ms per step: older, this, Swin': lambda row: (
        ', '.join(_number(f'{name}_ms')(row) for name in ('old', 'new', 'baseline'))
        if row['new_ms']
        else row['note']
    ),
    'time: this / older': _number('time_new_to_old'),
    'this / Swin': _number('time_new_to_baseline'),
    'tensors, MiB: older, this, Swin': lambda row: ', '.join(
        _number(f'{name}_allocated_mib')(row) for name in ('old', 'new', 'baseline')
    ),
    'tensors: this / older': _number('allocated_new_to_old'),
    'resident, MiB: older, this, Swin': lambda row: ', '.join(
        _number(f'{name}_mib')(row) for name in ('old', 'new', 'baseline')
    ),
    'resident: this / older': _number('memory_new_to_old'),
    'resident: this / Swin': _number('memory_new_to_baseline'),
}
KERNELS: dict[str, Value] = {
    'model': _text('model'),
    'mode': _text('mode'),
    'image, batch': _image,
    'kernel': _text('kernel'),
    'ms per step': _number('kernel_ms'),
    'calls': _number('calls'),
}
COLD: dict[str, Value] = {
    'model': _text('model'),
    'backend': _text('impl'),
    'mode': _text('mode'),
    'image, batch': _image,
    'seconds, first step': _number('cold_s'),
    'note': _text('note'),
}
GOALS: dict[str, Value] = {
    "goal (a speed of 1 is Swin-T's)": _text('goal'),
    'image, batch': _text('image'),
    'at commit ce20759': _number('before'),
    'wanted': _number('wanted'),
    'measured': _number('measured'),
    '': _text('verdict'),
}
# Columns of a table, by a column that only this kind of file has.
KINDS = {
    'runtime': BACKBONE,
    'of_roofline': ATTENTION,
    'optimizer_ms': DETECTOR,
    'images_per_s_per_worker': LOADER,
    'spincount': BUSY,
    'splits': CHECKS,
    'time_new_to_old': COMMITS,
    'kernel_ms': KERNELS,
    'cold_s': COLD,
    'verdict': GOALS,
}


def _provenance(rows: Sequence[dict[str, str]]) -> str:
    """Return the environment of a file in one line; differing values are all listed."""
    parts = []
    for name, title in NAMES.items():
        values = sorted({row[name] for row in rows} - {''})
        if values:
            parts.append(f'{title} {" / ".join(values)}')
    return 'Measured with: ' + '; '.join(parts) + '.'


def table(path: Path) -> str:
    """Format a CSV file as Markdown, without empty columns, with its environment below.

    Args:
        path: File of one of the benchmarks.

    Raises:
        ValueError: If the file is of another kind.
    """
    rows = measure.read_csv(path)
    columns = next((KINDS[name] for name in KINDS if name in rows[0]), None)
    if columns is None:
        raise ValueError(
            f'{path} is not from a known benchmark; expected one of the columns {", ".join(KINDS)}'
        )
    texts = {name: [value(row) for row in rows] for name, value in columns.items()}
    filled = {name: column for name, column in texts.items() if any(column)}
    cells = [list(map(Cell, row)) for row in zip(*filled.values(), strict=True)]
    grid = Grid('', '', list(filled), cells, [])
    return f'{markdown_table(grid)}\n{_provenance(rows)}\n'


def render(page: str, results: Path) -> str:
    """Update every marked table of a page.

    Args:
        page: Text with markers.
        results: Folder of the CSV files.

    Returns:
        The new text.

    Raises:
        ValueError: If there is no marker, or a file has no marker on the page.
    """
    names = [name for _, name, _ in MARKED.findall(page)]
    if not names:
        raise ValueError('the page has no <!-- table: NAME --> ... <!-- end -->')
    lost = sorted({path.stem for path in results.glob('*.csv')} - set(names))
    if lost:
        raise ValueError(f'the page has no table for {", ".join(lost)} of {results}')

    def fill(match: re.Match) -> str:
        path = results / f'{match[2]}.csv'
        text = table(path) if path.exists() else 'Not run.\n'
        picture = PAGE.parent / 'images' / f'{match[2]}.png'
        if path.exists() and picture.exists():
            text += f'\n![Time and memory over pixels](images/{picture.name})\n'
        return f'{match[1]}\n{text}\n{match[3]}'

    return MARKED.sub(fill, page)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or check whether it is up to date (exit status)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--page', type=Path, default=PAGE)
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument(
        '--check', action='store_true', help='write nothing; fail if the page is out of date'
    )
    args = parser.parse_args(argv)
    old = args.page.read_text(encoding='utf-8')
    new = render(old, args.results)
    if args.check:
        print(f'{args.page} is {"up to date" if new == old else "out of date"}')
        return int(new != old)
    args.page.write_text(new, encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
