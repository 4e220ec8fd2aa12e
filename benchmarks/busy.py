# SPDX-License-Identifier: Apache-2.0
"""Slowdown of a training next to a busy process, by the spin time of GNU OpenMP's threads.

Each round times steps of a nano backbone for each ``GOMP_SPINCOUNT`` (``default``: unset), alone
and next to a process that keeps one core busy. Every timing runs in a new process.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from statistics import median

import measure
import torch
from measure import Row, Size

DEFAULT = 'default'
BUSY = 'while True: pass'


def time_steps(size: Size, steps: int) -> float:
    """Return the median seconds of a training step in this process."""
    import backbone

    case = backbone.Case(
        'focal_nano', 'auto', 'fp32', 'train', 'eager', size, backbone.CLASSIFICATION, 'cpu'
    )
    step = backbone.make_step(case)
    step()
    return median(measure.seconds_of(step, 'cpu') for _ in range(steps))


@contextmanager
def busy_process(wanted: bool) -> Iterator[None]:
    """Keep one core busy within the context, if enabled."""
    process = subprocess.Popen([sys.executable, '-c', BUSY]) if wanted else None
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


def time_process(spincount: str, args: argparse.Namespace) -> float:
    """Return the seconds of a step in a new process."""
    env = {name: value for name, value in os.environ.items() if name != 'GOMP_SPINCOUNT'}
    if spincount != DEFAULT:
        env['GOMP_SPINCOUNT'] = spincount
    command = [sys.executable, __file__, '--child', '--size', str(args.size)]
    command += ['--threads', str(args.threads), '--steps', str(args.steps)]
    done = subprocess.run(command, env=env, capture_output=True, check=True)
    return float(done.stdout.split()[-1])  # after log lines


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('--size', type=measure.parse_size, default=Size(160, 160, 4), metavar='HxWxB')
    add('--steps', type=int, default=10, metavar='N', help='per process (default: 10)')
    add('--spincounts', nargs='+', default=[DEFAULT, '1000'], metavar='N')
    add('--child', action='store_true', help=argparse.SUPPRESS)
    measure.add_common_arguments(parser)
    parser.set_defaults(device='cpu')
    return measure.parse(parser, argv)


def measure_all(args: argparse.Namespace) -> list[Row]:
    """Return a row per load and spin count; ratios are to the first count at the same load."""
    cases = list(product((False, True), args.spincounts))
    default = args.spincounts[0]

    def seconds(is_busy: bool, spincount: str) -> float:
        with busy_process(is_busy):
            return time_process(spincount, args)

    timings = {case: partial(seconds, *case) for case in cases}
    times, why = measure.steadily(
        lambda: measure.take_turns(timings, args.rounds), [(False, default)], args.max_spread
    )
    return [
        dict(beside='a busy process' if is_busy else 'nothing', spincount=spincount)
        | args.size._asdict()
        | measure.time_columns(times.get((is_busy, spincount)), times.get((is_busy, default)))
        | dict(note=why)
        for is_busy, spincount in cases
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the measurements of the command line."""
    args = parse_args(argv)
    if args.child:
        torch.set_num_threads(args.threads)
        print(time_steps(args.size, args.steps))
        return
    rows = measure_all(args)
    measure.write_csv(args.csv, rows)
    measure.print_table('Busy machine', list(rows[0]), [list(row.values()) for row in rows])


if __name__ == '__main__':
    main()
