# SPDX-License-Identifier: Apache-2.0
"""Train a small model for hours and record memory, open files and disk usage, to find leaks.

One training with regular validations and checkpoints runs until the time is over. Memory of the
trainer and of its data workers, open files and disk usage are sampled and drawn. The tool fits
lines to the samples and prints their slopes. ``--report CSV`` draws and prints the samples of an
earlier run.
"""

import argparse
import csv
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
UNITS = dict(
    trainer_mb='MB',
    workers_mb='MB',
    trainer_files='files',
    worker_files='files',
    processes='processes',
    shared_memory_mb='MB',
    checkpoints_mb='MB',
    logs_mb='MB',
)
WARM_UP = 0.1  # share of the samples that the fits leave out, because caches still fill
OPTIONS = (
    'train_cfg.max_iters=1000000',
    'train_cfg.val_interval=20',
    'default_hooks.checkpoint.interval=10',
    'default_hooks.checkpoint.max_keep_ckpts=2',
    'default_hooks.logger.interval=10',
)


def _mb(count: float) -> float:
    return round(count / 1e6, 3)


def sample(trainer: psutil.Process, work_dir: Path) -> dict[str, float]:
    """Measure a run.

    Args:
        trainer: Its main process; data workers are its children.
        work_dir: Its work directory.

    Returns:
        Values by the names of ``UNITS``.
    """
    workers = trainer.children(recursive=True)
    sizes = {path: path.stat().st_size for path in work_dir.rglob('*') if path.is_file()}
    checkpoints = sum(size for path, size in sizes.items() if '.pth' in path.name)
    return dict(
        trainer_mb=_mb(trainer.memory_info().rss),
        workers_mb=_mb(sum(worker.memory_info().rss for worker in workers)),
        trainer_files=trainer.num_fds(),
        worker_files=sum(worker.num_fds() for worker in workers),
        processes=1 + len(workers),
        shared_memory_mb=_mb(psutil.disk_usage('/dev/shm').used),
        checkpoints_mb=_mb(checkpoints),
        logs_mb=_mb(sum(sizes.values()) - checkpoints),
    )


def iterations(work_dir: Path) -> int:
    """Return the last iteration that was logged.

    Args:
        work_dir: Work directory of the training.
    """
    logged = [path.read_text().count('Iter(train)') for path in work_dir.rglob('*.log')]
    return 10 * sum(logged)


def watch(command: Sequence[str], work_dir: Path, seconds: float, table: Path) -> None:
    """Run a training for some time and write samples to a CSV file as they come.

    Args:
        command: Command that starts the training.
        work_dir: Its work directory.
        seconds: Duration.
        table: CSV file.

    Raises:
        RuntimeError: If the training ends by itself.
    """
    start = time.monotonic()
    with open(work_dir / 'printed.txt', 'w') as printed, open(table, 'w', newline='') as file:
        writer = csv.DictWriter(file, ('seconds', 'iterations', *UNITS))
        writer.writeheader()
        process = subprocess.Popen(command, stdout=printed, stderr=printed)
        trainer = psutil.Process(process.pid)
        interval = max(1.0, seconds / 1000)
        while (now := time.monotonic() - start) < seconds:
            time.sleep(interval)
            if process.poll() is not None:
                raise RuntimeError(f'the training ended after {now:.0f} s, see {printed.name}')
            try:
                values = sample(trainer, work_dir)
            except (psutil.Error, FileNotFoundError):  # a file or worker has just disappeared
                continue
            if done := iterations(work_dir):  # the start is no steady state
                writer.writerow(dict(seconds=round(now, 1), iterations=done, **values))
                file.flush()
        process.send_signal(signal.SIGTERM)
        process.wait()


def read_samples(table: Path) -> dict[str, np.ndarray]:
    """Read the columns of a CSV file.

    Args:
        table: CSV file of ``watch``.
    """
    with open(table, newline='') as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def slope(hours: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Fit a line.

    Args:
        hours: Times.
        values: Samples.

    Returns:
        Growth per hour, and its standard error by the residuals of ten blocks, since neighboring
        samples are not independent.
    """
    growth = np.polyfit(hours, values, 1)[0]
    blocks = [np.mean(part) for part in np.array_split(values, 10)]
    times = [np.mean(part) for part in np.array_split(hours, 10)]
    _, covariance = np.polyfit(times, blocks, 1, cov=True)
    return float(growth), float(np.sqrt(covariance[0, 0]))


def report(samples: Mapping[str, np.ndarray], picture: Path) -> None:
    """Print the slopes as a table and draw the samples.

    Args:
        samples: Columns of ``read_samples``.
        picture: File to write.
    """
    hours = samples['seconds'] / 3600
    kept = slice(int(WARM_UP * len(hours)), None)
    done = samples['iterations']
    print(
        f'{hours[-1]:.2f} h, {done[-1]:.0f} iterations, {len(hours)} samples; '
        f'lines fitted from {hours[kept][0]:.2f} h on ({done[-1] - done[kept][0]:.0f} iterations)'
    )
    print('| | first | last | largest | growth per hour |\n|---|---|---|---|---|')
    for name, unit in UNITS.items():
        values = samples[name][kept]
        growth, error = slope(hours[kept], values)
        numbers = ' | '.join(f'{value:g}' for value in (values[0], values[-1], values.max()))
        print(f'| {name} | {numbers} | {growth:+.3g} ± {error:.2g} {unit} |')
    figure = Figure((10, 6), layout='constrained')
    for axes, name in zip(figure.subplots(2, 4).flat, UNITS, strict=True):
        axes.plot(hours, samples[name], linewidth=0.8)
        axes.set(title=name, xlabel='hours', ylim=(0, 1.1 * samples[name].max() or 1))
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=100)


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--config', default='configs/quickstart/focal_nano_maskrcnn.py')
    parser.add_argument('--minutes', type=float, default=120)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/soak'))
    parser.add_argument('--out', type=Path, default=Path('work_dirs/soak.csv'), help='CSV file')
    parser.add_argument('--report', type=Path, help='CSV file of an earlier run')
    parser.add_argument('--cfg-options', nargs='+', default=[], help='see tools/train.py')
    args = parser.parse_args()
    table = args.report or args.out
    if not args.report:
        args.work_dir.mkdir(parents=True)
        command = [sys.executable, str(ROOT / 'tools/train.py'), args.config]
        command += ['--work-dir', str(args.work_dir), '--cfg-options', *OPTIONS, *args.cfg_options]
        watch(command, args.work_dir, 60 * args.minutes, table)
    report(read_samples(table), table.with_suffix('.png'))


if __name__ == '__main__':
    main()
