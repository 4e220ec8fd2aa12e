# SPDX-License-Identifier: Apache-2.0
"""Report one or more finished runs: table of results, curves, predictions beside ground truth."""

import argparse
import sys
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from mmfocal.analysis.run_log import RunLog, read_run_log
from mmfocal.existing_outputs import replacement
from mmfocal.visualization.curves import save_curves
from mmfocal.visualization.predictions import save_predictions

METRICS = {
    'coco/bbox_mAP': 'box AP',
    'coco/segm_mAP': 'mask AP',
    'mIoU': 'mIoU',
    'accuracy/top1': 'top-1',
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dirs', type=Path, nargs='+', help='work directories of train.py')
    parser.add_argument('--out', type=Path, help='folder to write (default: the first run)')
    parser.add_argument('--names', nargs='+', help="names of the runs (default: the folders')")
    parser.add_argument(
        '--predictions',
        type=Path,
        help='*.segm.json of the first run, to be drawn beside the ground truth',
    )
    args = parser.parse_args()
    args.names = args.names or [work_dir.name for work_dir in args.work_dirs]
    if len(args.names) != len(args.work_dirs):
        parser.error(f'{len(args.work_dirs)} work directories, but {len(args.names)} --names')
    if len(set(args.names)) != len(args.names):
        parser.error(f'two runs have one name: {" ".join(args.names)}; set others with --names')
    return args


def make_rows(logs: dict[str, RunLog]) -> list[list[str]]:
    """Return header and one row per run: last value and step of every metric.

    The loss is logged every few iterations, so the last one may be some iterations old.
    """
    found = [
        key for key in METRICS if any(key in s for log in logs.values() for s in log.val.values())
    ]
    header = ['run', 'iterations', 'minutes', 'last loss', 'validated at']
    rows = [header + [METRICS[key] for key in found]]
    for name, log in logs.items():
        logged, val = max(log.train), log.val[max(log.val)] if log.val else {}
        # MMEngine counts validations in the unit of the training loop
        unit = 'epoch' if 'epoch' in log.train[logged] else 'iteration'
        last = max(logged, val.get('step', 0)) if unit == 'iteration' else logged
        row = [name, str(last), f'{log.seconds / 60:.1f}']
        row.append(f'{log.train[logged]["loss"]:.3f} at {logged}')
        row.append(f'{unit} {val["step"]}' if val else 'not run')
        rows.append(row + [f'{val[key]:.3f}' if key in val else 'not run' for key in found])
    return rows


def print_table(rows: list[list[str]]) -> None:
    """Print the table with rich."""
    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*row)
    Console(width=max(Console().width, 110)).print(table)  # the default without terminal is 80


def write_markdown(rows: list[list[str]], path: Path) -> None:
    """Write the table as Markdown."""
    lines = [rows[0], ['---'] * len(rows[0]), *rows[1:]]
    path.write_text(''.join(f'| {" | ".join(line)} |\n' for line in lines))


def draw_predictions(work_dir: Path, results_file: Path, path: Path) -> None:
    """Draw the run's predictions on its validation set, according to its newest config."""
    configs = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise FileNotFoundError(f'--predictions: {work_dir} holds no config (*.py) of a run')
    dataset = Config.fromfile(configs[-1]).val_dataloader.dataset
    root = Path(dataset.data_root)
    save_predictions(root / dataset.ann_file, results_file, root / dataset.data_prefix.img, path)


def write_report(args: argparse.Namespace) -> None:
    """Write and print the report."""
    out = args.out or args.work_dirs[0]
    out.mkdir(parents=True, exist_ok=True)
    names = ['curves.png', *['predictions.png'] * bool(args.predictions), 'results.md']
    for line in filter(None, (replacement(out / name) for name in names)):
        print(line)
    logs = {
        name: read_run_log(work_dir)
        for name, work_dir in zip(args.names, args.work_dirs, strict=True)
    }
    written = [out / 'curves.png']
    save_curves(logs, list(METRICS), written[0])
    if args.predictions:
        written.append(out / 'predictions.png')
        draw_predictions(args.work_dirs[0], args.predictions, written[-1])
    rows = make_rows(logs)
    written.append(out / 'results.md')
    write_markdown(rows, written[-1])
    print_table(rows)
    for path in written:
        print(f'wrote {path}')


def main() -> None:
    """Run the report of the command line."""
    args = parse_args()
    try:
        write_report(args)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
