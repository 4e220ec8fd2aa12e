# SPDX-License-Identifier: Apache-2.0
"""Shared code of the benchmarks: timing, peak memory, rates of the machine, tables and CSV.

Candidates take turns, round by round, in one process, so that temporary slowdowns of the machine
affect all of them. Ratios are medians over rounds; both times are of the same round.
"""

import argparse
import csv
import math
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import datetime, timezone
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from mmfocal.collect_env import collect

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
MIB = 2**20
SIDES = {'cpu': 2048, 'cuda': 8192}  # of the matrices that are multiplied to measure FLOP/s
COPIED = 64 * MIB  # number of floats that are copied to measure bytes/s
LEAST_SECONDS = 0.2  # minimum of one timing; short steps are repeated
ROUNDS = 6
TRIES = 3  # attempts to get steady timings
SETTINGS = ('GLIBC_TUNABLES', 'GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')
LIBRARIES = ('torch', 'triton', 'mmpretrain', 'mmdet')

Step = Callable[[], Any]
Row = dict[str, Any]


class Size(NamedTuple):
    """Height and width of the images in pixels, and batch size."""

    height: int
    width: int
    batch: int

    def __str__(self) -> str:
        return 'x'.join(map(str, self))


def parse_size(text: str) -> Size:
    """Parse ``'784x1344x1'`` as height, width and batch, for argparse."""
    parts = text.split('x')
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(
            f'a size must be HEIGHTxWIDTHxBATCH, such as 784x1344x1, got {text!r}'
        )
    return Size(*map(int, parts))


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of all measurements."""
    default = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', choices=['cpu', 'cuda'], default=default)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), metavar='N')
    parser.add_argument(
        '--rounds', type=int, default=ROUNDS, metavar='N', help='(default: %(default)s)'
    )
    parser.add_argument(
        '--max-spread',
        type=float,
        metavar='X',
        help='repeat, and finally reject, measurements in which the slowest round of a baseline '
        'takes more than 1 + X times as long as its fastest round',
    )
    parser.add_argument('--csv', type=Path, metavar='PATH', help='file to write')
    parser.add_argument('--force', action='store_true', help='overwrite files')


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; errors that would occur after the measurement are raised here."""
    args = parser.parse_args(argv)
    for name in ('csv', 'plot'):
        path = getattr(args, name, None)
        if path and path.exists() and not args.force:
            parser.error(f'--{name}: {path} exists; give another name, or --force to overwrite it')
    for name in ('threads', 'rounds'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1, got {getattr(args, name)}')
    if args.max_spread is not None and (args.max_spread <= 0 or args.rounds < ROUNDS):
        parser.error(f'--max-spread must be positive and needs at least {ROUNDS} --rounds')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: PyTorch finds no CUDA device on this machine')
    torch.set_num_threads(args.threads)
    return args


# Time


def seconds_of(step: Step, device: str, repeats: int = 1) -> float:
    """Measure seconds per step, on a GPU by CUDA events."""
    if device == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - begin) / repeats


def _why_not(error: Exception) -> str:
    """Return why a candidate is unsupported; an empty string for unexpected errors."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return 'out of memory'
    by_compiler = type(error).__module__.startswith(('torch._dynamo', 'torch._inductor'))
    refusal = re.search(r'cannot run here: ([^"\n]+)', str(error))
    if refusal and (by_compiler or isinstance(error, ValueError)):  # the compiler quotes the error
        return refusal[1]
    return f'torch.compile: {str(error).splitlines()[0]}' if by_compiler else ''


def start(
    make_step: Callable[[Any], Step], case: Any, device: str
) -> tuple[Step | None, float | None, str]:
    """Create a step and run it for the first time.

    Args:
        make_step: Makes the step of a case.
        case: What to measure.
        device: ``'cpu'`` or ``'cuda'``.

    Returns:
        The step, the seconds of its first call (including compilation and allocation) and an empty
        string; or None, None and the reason why it is unsupported.
    """
    try:
        step = make_step(case)
        return step, seconds_of(step, device), ''
    except Exception as error:
        reason = _why_not(error)
        if not reason:
            raise
    if device == 'cuda':
        torch.cuda.empty_cache()
    return None, None, reason


def take_turns(
    timings: Mapping[Hashable, Callable[[], float]], rounds: int
) -> dict[Hashable, list[float]]:
    """Call candidates in turn; each round begins with the next candidate.

    Args:
        timings: Return seconds, by name of the candidate.
        rounds: Number of calls of each.

    Returns:
        Results of each candidate, round by round.
    """
    times = {name: [] for name in timings}
    order = list(timings)
    for _ in range(rounds):
        for name in order:
            times[name].append(timings[name]())
        order = order[1:] + order[:1]
    return times


def alternate(
    steps: Mapping[Hashable, Step], device: str, rounds: int, least: float = LEAST_SECONDS
) -> dict[Hashable, list[float]]:
    """Time steps by :func:`take_turns`; short steps are repeated.

    Args:
        steps: Candidates by name; each has run once.
        device: ``'cpu'`` or ``'cuda'``.
        rounds: Number of timings of each.
        least: Minimum seconds of a timing.

    Returns:
        Seconds per step of each candidate, round by round.
    """
    repeats = {
        name: max(1, math.ceil(least / seconds_of(step, device))) for name, step in steps.items()
    }
    return take_turns(
        {name: partial(seconds_of, step, device, repeats[name]) for name, step in steps.items()},
        rounds,
    )


def steadily(
    run: Callable[[], dict[Hashable, list[float]]],
    baselines: Sequence[Hashable],
    max_spread: float | None,
) -> tuple[dict[Hashable, list[float]], str]:
    """Repeat timings until those of the baselines are steady.

    Args:
        run: Seconds per step of each candidate, round by round, such as :func:`alternate`'s.
        baselines: Names of the candidates whose rounds must agree.
        max_spread: Maximum of longest over shortest time, minus 1; None for no limit.

    Returns:
        The result of ``run`` and an empty string; or, if the timings stay unsteady, no times and
        the reason.
    """
    for _ in range(TRIES):
        times = run()
        spreads = [max(times[name]) / min(times[name]) - 1 for name in baselines if name in times]
        spread = max(spreads, default=0.0)
        if max_spread is None or spread <= max_spread:
            return times, ''
    return {}, f'rejected: rounds of the baseline spread by {spread:.0%}, over {max_spread:.0%}'


def ratio_of(times: Sequence[float], baseline: Sequence[float]) -> float:
    """Return the median over rounds of the ratio of two candidates' times."""
    return median(a / b for a, b in zip(times, baseline, strict=True))


def time_columns(times: Sequence[float] | None, baseline: Sequence[float] | None) -> Row:
    """Return median, minimum and maximum time of a step in ms, and the ratio to the baseline."""
    if times is None:
        return dict.fromkeys(('ms', 'ms_min', 'ms_max', 'ratio'))
    ms = [1000 * seconds for seconds in times]
    ratio = ratio_of(times, baseline) if baseline else None
    return dict(ms=median(ms), ms_min=min(ms), ms_max=max(ms), ratio=ratio)


# Memory


def _own_memory(field: str) -> int:
    """Return ``VmRSS`` or ``VmHWM`` (resident memory or its peak) of this process in bytes."""
    status = Path('/proc/self/status').read_text()
    return int(status.partition(f'{field}:')[2].split()[0]) * 1024


def _peak_of_this_process(make_step: Callable[[Any], Step], case: Any, threads: int) -> int:
    torch.set_num_threads(threads)
    step = make_step(case)
    base = _own_memory('VmRSS')
    # The peak is reset here. getrusage's peak cannot be reset: it includes building the model and
    # the peak of the parent process.
    Path('/proc/self/clear_refs').write_text('5')
    step()
    step()
    return _own_memory('VmHWM') - base


def peak_memory(
    make_step: Callable[[Any], Step], case: Any, step: Step, device: str, threads: int
) -> int:
    """Measure the memory of a step in bytes, without weights and input.

    Args:
        make_step: Makes the step of a case; on CPUs it is called in a process of its own.
        case: What to measure; on CPUs it is pickled.
        step: The case's step in this process, after warm-up; used on GPUs.
        device: ``'cpu'`` or ``'cuda'``.
        threads: Threads of PyTorch.

    Returns:
        CPU: growth of resident memory, two steps from the start. GPU: allocated tensors.

    Raises:
        OSError: If this is not Linux, whose ``/proc`` has the memory of a process.
        MemoryError: If the process was killed, as Linux does when memory runs out.
    """
    if device == 'cuda':
        torch.cuda.synchronize()
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - base
    if sys.platform != 'linux':
        raise OSError(f'memory on CPUs can be measured on Linux only, not on {sys.platform}')
    context = multiprocessing.get_context('spawn')
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_peak_of_this_process, make_step, case, threads).result()
    except BrokenProcessPool as error:
        raise MemoryError(f'the process that ran {case} was killed') from error


# The machine


def _best_seconds(step: Step, device: str) -> float:
    return min(seconds_of(step, device) for _ in range(6))


@cache
def matmul_rate(device: str, dtype: str) -> float:
    """Measure FLOP/s of a large matrix product, the upper limit of arithmetic.

    On CPUs two libraries compute products and 1x1 convolutions; the faster one counts.
    """
    side = SIDES[device]
    a = torch.randn(side, side, device=device, dtype=DTYPES[dtype])
    out = torch.empty_like(a)
    seconds = _best_seconds(lambda: torch.mm(a, a, out=out), device)
    if device == 'cpu':
        map_ = a.t()[None, :, :, None]  # one row of pixels, channels last
        weight = a[:, :, None, None]
        with torch.no_grad():
            seconds = min(seconds, _best_seconds(lambda: F.conv2d(map_, weight), device))
    return 2 * side**3 / seconds


@cache
def copy_rate(device: str) -> float:
    """Measure bytes/s, read and written, of a large copy, the upper limit of memory traffic."""
    source = torch.ones(COPIED, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source), device)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return 'not installed'


@cache
def _versions() -> dict[str, str]:
    env = collect()
    versions = {name: env[name].partition(' (from')[0] for name in ('mmfocal', *LIBRARIES)}
    return dict(cpu=env['CPU'], gpu=env['GPU'], **versions, timm=_version('timm'))


def environment() -> Row:
    """Return machine, versions, relevant environment variables and date (UTC)."""
    names = sorted(n for n in os.environ if n in SETTINGS or n.startswith('MMFOCAL_'))
    return dict(
        _versions(),
        threads=torch.get_num_threads(),
        settings=' '.join(f'{name}={os.environ[name]}' for name in names),
        date=datetime.now(timezone.utc).date().isoformat(),
    )


# Output


def short(value: Any) -> str:
    """Format a value for tables: three digits; an empty string for None."""
    if isinstance(value, float):
        return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'
    return '' if value is None else str(value)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows of values; numbers are aligned right."""
    table = Table(title=title, title_justify='left')
    for index, name in enumerate(header):
        is_number = any(isinstance(row[index], (int, float)) for row in rows)
        table.add_column(name, justify='right' if is_number else 'left')
    for row in rows:
        table.add_row(*map(short, row))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # rich wraps at 80 columns otherwise
        console.width = 240
    console.print(table)


def write_csv(path: Path | None, rows: Sequence[Row]) -> None:
    """Write rows followed by the environment; without a path, write nothing."""
    if path is None:
        return
    rows = [row | environment() for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f'{v:.6g}' if isinstance(v, float) else v for k, v in row.items()})


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file as text.

    Args:
        path: File written by :func:`write_csv`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has no rows.
    """
    with path.open(newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f'{path} has no rows')
    return rows
