# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of an older commit next to this tree, in alternating rounds.

Each tree runs its own ``backbone.py`` in a process of its own; one waits while the other computes.
Ratios are those of this tree to the older commit, and of both to Swin of the same size.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from statistics import median

import backbone
import measure
from measure import MIB, Row, Size

ROOT = Path(__file__).resolve().parents[1]
OLD, NEW, BASELINE = 'old', 'new', 'baseline'
# Answers each line on its input with one number; logs go to standard error.
WORKER = """
import os, sys
answers = os.fdopen(os.dup(1), 'w', buffering=1)
os.dup2(2, 1)
tree, here, model, impl, mode, height, width, batch, threads = sys.argv[1:]
sys.path[:0] = [tree, tree + '/benchmarks']
sys.path.append(here)  # what the older tree may lack
import allocated, backbone, measure, torch
assert backbone.__file__.startswith(tree), backbone.__file__
torch.set_num_threads(int(threads))
size = measure.Size(int(height), int(width), int(batch))
windows = backbone.DETECTION if max(size[:2]) > 224 else backbone.CLASSIFICATION
case = backbone.Case(model, impl, 'fp32', mode, 'eager', size, windows if impl else (), 'cpu')
step = None
for line in sys.stdin:
    if line == 'memory\\n':
        answer = measure._peak_of_this_process(backbone.make_step, case, int(threads))
    else:
        if step is None:
            step = backbone.make_step(case)
            step(), step()
        if line == 'allocated\\n':
            answer = allocated.peak_of(step)
        else:
            answer = measure.seconds_of(step, 'cpu', int(line))
    print(answer, file=answers)
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('commit', help='older commit, branch or tag')
    add(
        '--sizes',
        nargs='+',
        type=measure.parse_size,
        default=[Size(224, 224, 8), Size(784, 1344, 1)],
        metavar='HxWxB',
        help='(default: 224x224x8 784x1344x1)',
    )
    add('--model', choices=[f'focal_{arch}' for arch in backbone.ARCHS], default='focal_tiny')
    add('--impl', default='auto', help='backend of both (default: auto)')
    add('--modes', nargs='+', choices=['infer', 'train'], default=['infer', 'train'])
    measure.add_common_arguments(parser)
    parser.set_defaults(device='cpu')
    return measure.parse(parser, argv)


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check an older commit out in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'tree')
        subprocess.run(['git', 'worktree', 'add', '--detach', path, commit], cwd=ROOT, check=True)
        try:
            yield path
        finally:
            subprocess.run(['git', 'worktree', 'remove', '--force', path], cwd=ROOT, check=True)


class Worker:
    """A process that times one model of one tree whenever it is asked."""

    def __init__(self, tree: Path, model: str, impl: str, mode: str, size: Size, threads: int):
        here = Path(__file__).resolve().parent
        arguments = [tree, here, model, impl, mode, *size, threads]
        self.process = subprocess.Popen(
            [sys.executable, '-c', WORKER, *map(str, arguments)],
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> 'Worker':
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, request: object) -> float:
        """Return the seconds of a step, measured as many times as asked, or bytes.

        ``'memory'`` asks for the peak of resident memory, ``'allocated'`` for that of tensors.
        """
        assert self.process.stdin and self.process.stdout
        print(request, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f'the worker ended with exit status {self.process.wait()}')
        return float(answer)


def measure_case(trees: dict[str, Path], size: Size, mode: str, args: argparse.Namespace) -> Row:
    """Return the row of one size and mode."""
    models = {name: (tree, args.model, args.impl) for name, tree in trees.items()}
    models[BASELINE] = (trees[NEW], args.model.replace('focal', 'swin'), '')
    how = (mode, size, args.threads)
    memory = _median_memory(models, how, args.rounds)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(*m, *how)) for name, m in models.items()}
        allocated = {name: worker.ask('allocated') for name, worker in workers.items()}
        repeats = {
            name: max(1, round(measure.LEAST_SECONDS / worker.ask(1)))
            for name, worker in workers.items()
        }
        steps = {name: lambda n=name: workers[n].ask(repeats[n]) for name in workers}
        times, why = measure.steadily(
            lambda: measure.take_turns(steps, args.rounds), [BASELINE], args.max_spread
        )
    return make_row(args, size, mode, times, memory, allocated, why)


def _median_memory(models: dict[str, tuple], how: tuple, rounds: int) -> dict[str, float]:
    """Return bytes; resident memory differs between processes, so these take turns."""
    peaks = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            with Worker(*model, *how) as worker:
                peaks[name].append(worker.ask('memory'))
    return {name: median(values) for name, values in peaks.items()}


def make_row(
    args: argparse.Namespace,
    size: Size,
    mode: str,
    times: dict,
    memory: dict,
    allocated: dict,
    why: str,
) -> Row:
    """Return times, memory and their ratios; ``times`` is empty if they were rejected."""
    row = dict(model=args.model, impl=args.impl, commit=args.commit, mode=mode, **size._asdict())
    for name in (OLD, NEW, BASELINE):
        columns = measure.time_columns(times.get(name), None)
        row |= {f'{name}_{column}': columns[column] for column in ('ms', 'ms_min', 'ms_max')}
        row[f'{name}_mib'] = memory[name] / MIB
        row[f'{name}_allocated_mib'] = allocated[name] / MIB
    for over, under in ((NEW, OLD), (OLD, BASELINE), (NEW, BASELINE)):
        ratio = measure.ratio_of(times[over], times[under]) if times else None
        row[f'time_{over}_to_{under}'] = ratio
        row[f'memory_{over}_to_{under}'] = memory[over] / memory[under]
        row[f'allocated_{over}_to_{under}'] = allocated[over] / allocated[under]
    return row | dict(note=why)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the measurements of the command line."""
    args = parse_args(argv)
    rows = []
    with checkout(args.commit) as old:
        for size, mode in product(args.sizes, args.modes):
            rows.append(measure_case({OLD: old, NEW: ROOT}, size, mode, args))
            measure.write_csv(args.csv, rows)
    columns = [name for name in rows[0] if not name.endswith(('_mib', '_min', '_max'))]
    measure.print_table('Commits', columns, [[row[name] for name in columns] for row in rows])


if __name__ == '__main__':
    main()
