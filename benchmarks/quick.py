# SPDX-License-Identifier: Apache-2.0
"""Focal-T compared with timm's Swin-T on a GPU in five minutes, and the goals that it reaches.

The script needs PyTorch, Triton, timm and mmengine only. It first fills the compilers' caches in
parallel processes. Then every part runs in its own process with a time limit and writes its rows
immediately. ``--rehearse`` runs small parts interpreted on a CPU; its times are meaningless.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import attention
import backbone
import measure
import torch
from measure import Row, Size, Step
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

RESULTS = Path(__file__).resolve().parent / 'results'
MINUTES = 5
TOP_KERNELS = 25
TABLES = ('backbone', 'attention', 'cold', 'kernels', 'goals')
FILES = {name: f'gpu_quick_{name}.csv' for name in TABLES}


class Setting(NamedTuple):
    """Settings of the measurement on a GPU, or of a rehearsal."""

    device: str
    small: Size
    large: Size
    arch: str
    dtype: str
    rounds: int

    def cases(self, runtime: str, mode: str, size: Size) -> list[backbone.Case]:
        """Return the cases of Swin and Focal with the same settings."""
        small = max(size[:2]) <= 224
        focal_windows = backbone.CLASSIFICATION if small else backbone.DETECTION
        how = dict(dtype=self.dtype, mode=mode, runtime=runtime, size=size, device=self.device)
        return [
            backbone.Case('timm_swin_tiny', '', focal_windows=(), **how),
            backbone.Case(f'focal_{self.arch}', 'triton', focal_windows=focal_windows, **how),
        ]


GPU = Setting('cuda', Size(224, 224, 128), Size(800, 1344, 2), 'tiny', 'bf16', 3)
REHEARSAL = Setting('cpu', Size(28, 28, 1), Size(28, 56, 1), 'nano', 'fp32', 1)


class Part(NamedTuple):
    """A part that runs in its own process, and its time limit in seconds."""

    kind: str  # a key of KINDS
    runtime: str = 'eager'
    mode: str = 'train'
    size: str = 'both'  # or 'small' or 'large'
    model: str = 'both'  # or 'swin' or 'focal'
    limit: int = 60

    def __str__(self) -> str:
        return ' '.join(self[:5])

    def cases(self, setting: Setting) -> list[list[backbone.Case]]:
        """Return the cases of each size."""
        names = ('small', 'large') if self.size == 'both' else (self.size,)
        cases = [setting.cases(self.runtime, self.mode, getattr(setting, name)) for name in names]
        wanted = '' if self.model == 'both' else self.model
        return [[case for case in same_size if wanted in case.model] for same_size in cases]


# Compilers took 67 to 123 s for a model and size (H200, 16 cores, commit ce20759), which leaves
# no time for compiled inference: a CUDA graph gives similar information without a compiler.
WARM = [
    Part('warm', model='focal', limit=150),
    *(
        Part('warm', 'compile', size=size, model=model, limit=150)
        for size in ('small', 'large')
        for model in ('swin', 'focal')
    ),
]
PARTS = [
    Part('time', mode='infer'),
    Part('time'),
    Part('time', 'compile', limit=100),
    Part('time', 'graph', 'infer'),
    Part('attention', size='small', limit=40),
    Part('cold', size='small', model='focal', limit=90),
    Part('kernels', limit=50),
]


class Goal(NamedTuple):
    """A line of the table.

    Attributes:
        name: Label of the goal.
        runtimes: Runtimes, of which the best one counts; ``'attention'``: the operator only;
            ``'cold'``: the first step of eager training, from an empty cache of kernels.
        mode: ``'infer'`` or ``'train'``; ``'fwd'`` or ``'bwd'`` of the operator.
        column: ``'speed'`` (Swin's is 1), ``'memory_ratio'``, ``'tflop_per_s'`` or ``'cold_s'``.
        before: Values at commit ce20759, small and large; None if not measured.
        wanted: Target values, small and large; a maximum in columns of ``AT_MOST``.
    """

    name: str
    runtimes: tuple[str, ...]
    mode: str
    column: str
    before: tuple[float | None, ...]
    wanted: tuple[float, ...]


GOALS = [
    Goal('eager inference', ('eager',), 'infer', 'speed', (1.0, 0.48), (1.15, 1.0)),
    Goal('eager training', ('eager',), 'train', 'speed', (0.57, 0.56), (0.95, 0.95)),
    Goal('compiled training', ('compile',), 'train', 'speed', (0.43, 0.43), (0.85, 0.85)),
    Goal(
        'compiled or graphed inference',
        ('compile', 'graph'),
        'infer',
        'speed',
        (None, None),
        (1.0, 1.0),
    ),
    Goal('peak training memory', ('eager',), 'train', 'memory_ratio', (1.04, 1.05), (1.0, 1.0)),
    Goal('attention forward, TFLOP/s', ('attention',), 'fwd', 'tflop_per_s', (43.0,), (60.0,)),
    Goal('attention backward, TFLOP/s', ('attention',), 'bwd', 'tflop_per_s', (33.0,), (50.0,)),
    Goal('first training step, seconds', ('cold',), 'train', 'cold_s', (65.0,), (20.0,)),
]
AT_MOST = ('memory_ratio', 'cold_s')


# Parts, each in its own process


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Append rows to those of other parts."""
    old = measure.read_csv(path) if path.exists() else []
    measure.write_csv(path, [*old, *rows])


def warm(part: Part, setting: Setting, results: Path) -> None:
    """Fill the caches; errors are reported later, when the case is timed."""
    for case in chain(*part.cases(setting)):
        _, seconds, note = measure.start(backbone.make_step, case, setting.device)
        print(f'{case.model} {part}: {note or f"first step {seconds:.1f} s"}', flush=True)


def time_backbones(part: Part, setting: Setting, results: Path) -> None:
    """Measure speed and memory of both backbones."""
    for cases in part.cases(setting):
        args = argparse.Namespace(
            device=setting.device,
            rounds=setting.rounds,
            max_spread=None,
            # on CPUs, memory takes another process each
            memory=setting.device == 'cuda' or (part.runtime, part.mode) == ('eager', 'train'),
            threads=torch.get_num_threads(),
            baselines=[cases[0].model],
        )
        append_rows(results / FILES['backbone'], backbone.measure_cases(cases, args))


def time_attention(part: Part, setting: Setting, results: Path) -> None:
    """Time the operator at stage 1, forward and backward."""
    args = argparse.Namespace(
        device=setting.device, rounds=setting.rounds, max_spread=None, impls=['triton']
    )
    for direction in ('fwd', 'bwd'):
        how = dict(size=setting.small, dtype=setting.dtype, direction=direction, stage=1)
        append_rows(results / FILES['attention'], attention.measure_impls(args, **how))


def start_cold(part: Part, setting: Setting, results: Path) -> None:
    """Time the first step of Focal, which compiles all of its kernels."""
    ((case,),) = part.cases(setting)
    with tempfile.TemporaryDirectory() as folder:
        os.environ['TRITON_CACHE_DIR'] = folder
        _, seconds, note = measure.start(backbone.make_step, case, setting.device)
    what = dict(model=case.model, impl=case.impl, mode=case.mode, **case.size._asdict())
    append_rows(results / FILES['cold'], [what | dict(cold_s=seconds, note=note)])


def kernels_of(step: Step, device: str, steps: int = 3) -> list[tuple[str, float, float]]:
    """Return name, milliseconds and calls of a step's kernels (CPU: operators), longest first."""
    wanted = DeviceType.CUDA if device == 'cuda' else DeviceType.CPU
    field = f'self_{"device" if device == "cuda" else "cpu"}_time_total'
    step()
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device == 'cuda')]
    with profile(activities=activities) as run:
        for _ in range(steps):
            step()
        if device == 'cuda':
            torch.cuda.synchronize()
    events = [event for event in run.key_averages() if event.device_type == wanted]
    events = sorted(events, key=lambda event: -getattr(event, field))
    return [(e.key, getattr(e, field) / 1000 / steps, e.count / steps) for e in events]


def list_kernels(part: Part, setting: Setting, results: Path) -> None:
    """Write the kernels of a step."""
    for case in chain(*part.cases(setting)):
        kernels = kernels_of(backbone.make_step(case), setting.device)
        what = dict(model=case.model, mode=part.mode, **case.size._asdict())
        total = ('all', sum(ms for _, ms, _ in kernels), sum(calls for *_, calls in kernels))
        rows = [
            what | dict(kernel=name[:120], kernel_ms=ms, calls=calls)
            for name, ms, calls in [total, *kernels[:TOP_KERNELS]]
        ]
        append_rows(results / FILES['kernels'], rows)
        columns = ('kernel', 'kernel_ms', 'calls')
        title = f'{case.model}, {part.mode}, {case.size}'
        measure.print_table(title, columns, [[row[name] for name in columns] for row in rows])


KINDS = {
    'warm': warm,
    'time': time_backbones,
    'attention': time_attention,
    'cold': start_cold,
    'kernels': list_kernels,
}


def run_part(name: str, setting: Setting, results: Path) -> None:
    """Run a part in a child process."""
    part = next(part for part in (*WARM, *PARTS) if str(part) == name)
    if setting is REHEARSAL:
        backbone.NANO = dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
        backbone.COMPILER = 'aot_eager'
        backbone._as_graph = lambda step: step  # CPUs have no CUDA graphs
        measure.SIDES, measure.COPIED = {'cpu': 256}, measure.MIB
        measure.alternate.__defaults__ = (0.0,)
    KINDS[part.kind](part, setting, results)


# The parent process


def spawn(part: Part, args: argparse.Namespace) -> subprocess.Popen:
    """Start a part in a process group, which ``finish`` can end."""
    command = [sys.executable, __file__, '--part', str(part), '--results', str(args.results)]
    env = os.environ | dict(TRITON_INTERPRET='1') if args.rehearse else os.environ.copy()
    if part.kind == 'warm':  # several processes compile at a time
        env.setdefault('TORCHINDUCTOR_COMPILE_THREADS', '4')
    command += ['--rehearse'] * args.rehearse
    return subprocess.Popen(command, env=env, start_new_session=True)


def finish(process: subprocess.Popen, seconds: float) -> str:
    """Wait for a part; return why it failed, or an empty string."""
    try:
        status = process.wait(max(0.0, seconds))
        return f'exit status {status}' if status else ''
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f'stopped after {seconds:.0f} s'


def run_all(args: argparse.Namespace) -> dict[Part, str]:
    """Run every part; return the failures."""
    slower = 10 if args.rehearse else 1  # longer time limits for the interpreter
    deadline = time.monotonic() + 60 * args.minutes
    begun = time.monotonic()
    warming = [(part, spawn(part, args)) for part in WARM]
    for part, process in warming:
        note = finish(process, min(deadline, begun + slower * part.limit) - time.monotonic())
        if note:
            print(f'{part}: {note}', flush=True)
    print(f'caches are filled after {time.monotonic() - begun:.0f} s', flush=True)
    failed = {}
    for part in PARTS:
        left = deadline - time.monotonic()
        note = (
            finish(spawn(part, args), min(slower * part.limit, left))
            if left > 5
            else 'no time left'
        )
        if note:
            failed[part] = note
            print(f'{part}: {note}', flush=True)
    return failed


def values_of(goal: Goal, size: Size, results: Path) -> list[float]:
    """Return the measured values of a goal, for each of its runtimes."""
    table = goal.runtimes[0]
    path = results / FILES[table if table in ('attention', 'cold') else 'backbone']
    rows = measure.read_csv(path) if path.exists() else []
    values = []
    for row in rows:
        same = all(row[name] == str(value) for name, value in size._asdict().items())
        mode = row.get('mode') or row['direction']
        runtime = row.get('runtime') or table
        if same and row['impl'] == 'triton' and mode == goal.mode and runtime in goal.runtimes:
            if goal.column == 'speed':
                values += [1 / float(row['ratio'])] if row['ratio'] else []
            elif goal.column in AT_MOST:
                values += [float(row[goal.column])] if row[goal.column] else []
            elif row['gflop_per_s']:
                # products: two forward; five backward, including recomputed logits
                again = 1.25 if goal.mode == 'bwd' else 1.0
                values.append(again * float(row['gflop_per_s']) / 1000)
    return values


def judge(setting: Setting, results: Path) -> list[Row]:
    """Return a row per goal and size: old value, target, new value, and whether it is reached."""
    rows = []
    for goal in GOALS:
        for size, before, wanted in zip((setting.small, setting.large), goal.before, goal.wanted):
            values = values_of(goal, size, results)
            at_most = goal.column in AT_MOST
            best = (min if at_most else max)(values, default=None)
            verdict = 'not run'
            if best is not None:
                is_reached = best <= wanted if at_most else best >= wanted
                verdict = 'reached' if is_reached else 'missed'
            row = dict(goal=goal.name, image=str(size), before=before)
            rows.append(row | dict(wanted=wanted, measured=best, verdict=verdict))
    return rows


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('--rehearse', action='store_true', help='tiny and interpreted, on a CPU')
    add('--results', type=Path, default=RESULTS, help='folder (default: %(default)s)')
    add('--minutes', type=float, default=MINUTES, help='(default: %(default)s)')
    add('--force', action='store_true', help='overwrite files')
    add('--part', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not (args.rehearse or torch.cuda.is_available()):
        parser.error('PyTorch finds no CUDA device on this machine; --rehearse needs none')
    if args.rehearse and args.results == RESULTS:
        parser.error('--rehearse needs --results, because its times are meaningless')
    old = [args.results / name for name in FILES.values() if (args.results / name).exists()]
    if args.part is None and old:
        if not args.force:
            parser.error(f'{old[0]} exists; give another folder as --results, or --force')
        for path in old:
            path.unlink()
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table of goals; the exit status is 1 if a part failed."""
    args = parse_args(argv)
    setting = REHEARSAL if args.rehearse else GPU
    if args.part is not None:
        run_part(args.part, setting, args.results)
        return 0
    failed = run_all(args)
    rows = judge(setting, args.results)
    measure.write_csv(args.results / FILES['goals'], rows)
    columns = list(rows[0])
    measure.print_table('Goals', columns, [list(row.values()) for row in rows])
    for part, note in failed.items():
        print(f'not measured: {part}: {note}')
    return int(bool(failed))


if __name__ == '__main__':
    sys.exit(main())
