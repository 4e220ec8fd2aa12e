# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of Focal and Swin backbones, four output maps each, random weights.

Training means forward and backward pass without drop path. Swin is mmpretrain's, which, like
Focal, normalizes the output of each stage. timm's Swin has fused attention and returns maps
without norms.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import measure
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measure import DTYPES, MIB, Row, Size, Step
from torch import nn

from mmfocal import FocalTransformer
from mmfocal.analysis.complexity import CONVENTIONS
from mmfocal.analysis.complexity.counter import MacCounter
from mmfocal.ops.focal_attention.api import IMPLS

NANO = dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))  # of configs/quickstart
ARCHS = ('nano', *FocalTransformer.arch_zoo)
TIMM_ARCHS = ('tiny', 'small', 'base')
BASELINES = (*(f'swin_{arch}' for arch in ARCHS), *(f'timm_swin_{arch}' for arch in TIMM_ARCHS))
CLASSIFICATION = (7, 5, 3, 1)  # focal windows of the stages at 224 pixels
DETECTION = (15, 13, 9, 7)
GROWTH = (224, 320, 448, 640, 896, 1280, 1792, 2048)
COMPILER = 'inductor'
# Computed products, with duplicate neighbor keys counted once, because backends may combine them.
# Recomputation for the backward pass does not count as useful work.
KINDS = CONVENTIONS['default'].kinds - {'repeated'}


@dataclass(frozen=True)
class Case:
    """One candidate: model, runtime and input. ``impl`` is empty for Swin."""

    model: str
    impl: str
    dtype: str
    mode: str
    runtime: str
    size: Size
    focal_windows: tuple[int, ...]
    device: str


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        '--sizes',
        nargs='+',
        type=measure.parse_size,
        default=[Size(224, 224, 8)],
        metavar='HxWxB',
        help='images: height x width x batch (default: 224x224x8)',
    )
    sizes.add_argument(
        '--growth', action='store_true', help=f'one square image of {GROWTH} pixels, in turn'
    )
    add('--archs', nargs='+', choices=ARCHS, default=['tiny'], help='of Focal (default: tiny)')
    add('--impls', nargs='+', choices=IMPLS, default=['auto'], help='backends (default: auto)')
    add('--baselines', nargs='*', choices=BASELINES, default=['swin_tiny'])
    add('--dtypes', nargs='+', choices=DTYPES, default=['fp32'], help='half precision by autocast')
    add('--modes', nargs='+', choices=['infer', 'train'], default=['infer', 'train'])
    add('--compile', action='store_true', help='also measure with torch.compile')
    add('--cuda-graphs', action='store_true', help='also replay inference as a CUDA graph')
    add(
        '--focal-windows',
        type=int,
        nargs=4,
        metavar='F',
        help=f'focal windows of the stages (default: {CLASSIFICATION} up to 224 pixels, '
        f'{DETECTION} above)',
    )
    add('--memory', action='store_true', help='also measure memory')
    add('--plot', type=Path, metavar='PATH', help='picture of time and memory over pixels')
    measure.add_common_arguments(parser)
    args = measure.parse(parser, argv)
    if args.cuda_graphs and args.device != 'cuda':
        parser.error('--cuda-graphs needs --device cuda')
    if args.growth:
        args.sizes = [Size(side, side, 1) for side in GROWTH]
    args.runtimes = ['eager', *['compile'] * args.compile, *['graph'] * args.cuda_graphs]
    return args


def _swin(arch: str, size: Size) -> nn.Module:
    try:
        from mmpretrain.models import SwinTransformer
    except ImportError as error:
        raise SystemExit(
            f'the baseline is the Swin of mmpretrain, which cannot be imported: {error}; '
            'install onedl-mmpretrain or leave it out with --baselines'
        ) from error
    return SwinTransformer(
        NANO if arch == 'nano' else arch,
        img_size=size[:2],
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.0,
        pad_small_map=max(size[:2]) > 224 or min(size[:2]) < 224,  # as in dense tasks
    )


def _timm_swin(arch: str, size: Size) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise SystemExit(
            f'timm_swin_{arch} needs timm, which cannot be imported: {error}; '
            'pip install timm, or leave it out with --baselines'
        ) from error
    timm.layers.set_fused_attn(True, experimental=True)  # timm's switch for Swin's fused attention
    name = f'swin_{arch}_patch4_window7_224'
    return timm.create_model(name, features_only=True, img_size=size[:2], drop_path_rate=0.0)


def build_model(case: Case) -> nn.Module:
    """Build the backbone of a case, on the CPU."""
    family, _, arch = case.model.rpartition('_')
    if family == 'swin':
        return _swin(arch, case.size)
    if family == 'timm_swin':
        return _timm_swin(arch, case.size)
    return FocalTransformer(
        NANO if arch == 'nano' else arch,
        focal_windows=case.focal_windows,
        # at 224 pixels the last stage is one window
        expand_sizes=(3, 3, 3, 0 if case.focal_windows[3] == 1 else 3),
        drop_path_rate=0.0,
        attn_impl=case.impl,
    )


def _as_graph(step: Step) -> Step:
    """Capture a step, after warm-up, as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:  # e.g. a step that synchronizes
        raise ValueError(f'a CUDA graph cannot run here: {error}') from error
    return graph.replay


def make_step(case: Case) -> Step:
    """Return the timed step: inference, or forward and backward with all weight gradients."""
    torch.manual_seed(0)
    model = build_model(case).to(case.device)
    model.train(case.mode == 'train')
    if case.runtime == 'compile':
        # fullgraph: a Focal backbone that its backend cannot compile must not run uncompiled
        fullgraph = case.model.startswith('focal')
        model.compile(fullgraph=fullgraph, dynamic=False, backend=COMPILER)
    height, width, batch = case.size
    images = torch.randn(batch, 3, height, width, device=case.device)
    grads = []

    def forward() -> Sequence[torch.Tensor]:
        with torch.autocast(
            case.device,
            DTYPES[case.dtype],
            enabled=case.dtype != 'fp32',
            cache_enabled=case.runtime != 'graph',
        ):
            return model(images)

    @torch.no_grad()
    def infer() -> None:
        forward()

    def train() -> None:
        outs = forward()
        if not grads:  # random, because gradients of a sum vanish in the norms and leave denormals
            grads.extend(map(torch.randn_like, outs))
        torch.autograd.backward(outs, grads)
        model.zero_grad(set_to_none=True)

    if case.mode == 'train':
        return train
    return _as_graph(infer) if case.runtime == 'graph' else infer


@cache
def macs_per_image(name: str, size: Size, focal_windows: tuple[int, ...]) -> int:
    """Return the multiply-accumulates of a forward pass of one image."""
    model = build_model(Case(name, 'auto', 'fp32', 'infer', 'eager', size, focal_windows, 'meta'))
    model.eval()
    with MacCounter(model.to('meta')) as counter, torch.no_grad():
        model(torch.empty(1, 3, *size[:2], device='meta'))
    macs = counter.macs()['Global']
    return sum(macs[kind] for kind in KINDS)


def list_cases(args: argparse.Namespace, **how) -> list[Case]:
    """Return the cases of all models and backends, baselines first."""
    focal_windows = DETECTION if max(how['size'][:2]) > 224 else CLASSIFICATION
    focal_windows = tuple(args.focal_windows or focal_windows)
    baselines = [
        Case(name, '', focal_windows=(), device=args.device, **how) for name in args.baselines
    ]
    return baselines + [
        Case(f'focal_{arch}', impl, focal_windows=focal_windows, device=args.device, **how)
        for arch, impl in product(args.archs, args.impls)
    ]


def baseline_of(case: Case, baselines: Sequence[str]) -> str:
    """Return the first baseline of the same arch, else the first baseline."""
    arch = case.model.rpartition('_')[2]
    return next((name for name in baselines if name.endswith(arch)), (*baselines, '')[0])


def make_row(case: Case, baseline: str, **measured) -> Row:
    """Return the row of a case; ``times`` and ``memory`` are None if it did not run.

    ``baseline_times`` and ``baseline_memory`` are those of the model named ``baseline``.
    """
    times, memory, beside = (measured[key] for key in ('times', 'memory', 'baseline_memory'))
    row = dict(model=case.model, impl=case.impl, dtype=case.dtype, mode=case.mode)
    row |= dict(runtime=case.runtime, **case.size._asdict())
    row['focal_windows'] = '-'.join(map(str, case.focal_windows))
    row |= measure.time_columns(times, measured['baseline_times']) | dict(baseline=baseline)
    ms_per_image = images_per_s = utilization = None
    macs = macs_per_image(case.model, case.size._replace(batch=1), case.focal_windows)
    if times:
        ms_per_image = row['ms'] / case.size.batch
        images_per_s = 1000 / ms_per_image
        flops = 2 * macs * (3 if case.mode == 'train' else 1)  # backward: twice the forward pass
        utilization = flops * images_per_s / measure.matmul_rate(case.device, case.dtype)
    return row | dict(
        ms_per_image=ms_per_image,
        images_per_s=images_per_s,
        memory_mib=None if memory is None else memory / MIB,
        memory_ratio=memory / beside if memory is not None and beside else None,
        gmacs_per_image=macs / 1e9,
        utilization=utilization,
        first_s=measured['first'],
        note=measured['note'],
    )


def measure_cases(cases: Sequence[Case], args: argparse.Namespace) -> list[Row]:
    """Time cases in turn in this process; CPU memory is measured afterwards in new processes."""
    if any(case.runtime == 'compile' for case in cases):
        torch.compiler.reset()  # PyTorch limits recompilations
    started = {case: measure.start(make_step, case, args.device) for case in cases}
    steps = {case: step for case, (step, _, _) in started.items() if step}
    baselines = [case for case in cases if case.model in args.baselines]
    times, why = measure.steadily(
        lambda: measure.alternate(steps, args.device, args.rounds), baselines, args.max_spread
    )
    memory = {}
    if args.memory:
        memory = {
            case: measure.peak_memory(make_step, case, step, args.device, args.threads)
            for case, step in steps.items()
            if case.runtime != 'graph'  # a graph keeps its memory
        }
    rows = []
    for case in cases:
        baseline = baseline_of(case, args.baselines)
        beside = next((other for other in cases if other.model == baseline), None)
        rows.append(
            make_row(
                case,
                baseline,
                times=times.get(case),
                memory=memory.get(case),
                baseline_times=times.get(beside),
                baseline_memory=memory.get(beside),
                first=started[case][1],
                note=started[case][2] or why,
            )
        )
    return rows


def print_rows(rows: Sequence[Row]) -> None:
    """Print the most important columns."""
    columns = ('model', 'impl', 'dtype', 'mode', 'runtime', 'height', 'width', 'batch', 'ms')
    columns += ('ms_min', 'ms_max', 'images_per_s', 'ratio', 'memory_mib', 'memory_ratio')
    columns += ('utilization', 'first_s', 'note')
    measure.print_table('Backbones', columns, [[row[name] for name in columns] for row in rows])


def _draw_panel(axes: Axes, rows: Sequence[Row], column: str) -> None:
    """Draw one line per candidate: value per image over pixels."""
    labels = ('model', 'impl', 'dtype', 'runtime')
    lines = defaultdict(list)
    for row in rows:
        if row[column]:
            name = ' '.join(filter(None, (row[key] for key in labels)))
            lines[name].append((row['height'] * row['width'], row[column] / row['batch']))
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), '-o', label=name)
    axes.set(xlabel='pixels', xscale='log', yscale='log')
    axes.grid(alpha=0.3, which='both')
    if lines:
        axes.legend(fontsize=8)


def draw(rows: Sequence[Row]) -> Figure:
    """Draw time and memory per image over pixels on logarithmic axes, one row per mode."""
    modes = list(dict.fromkeys(row['mode'] for row in rows))
    figure = Figure((10, 4.2 * len(modes)), layout='constrained')
    columns = {'time per image in ms': 'ms', 'memory above base per image in MiB': 'memory_mib'}
    for mode, panels in zip(modes, figure.subplots(len(modes), 2, squeeze=False), strict=True):
        of_mode = [row for row in rows if row['mode'] == mode]
        for axes, (name, column) in zip(panels, columns.items(), strict=True):
            _draw_panel(axes, of_mode, column)
            axes.set(title=mode, ylabel=name)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Run the measurements of the command line."""
    args = parse_args(argv)
    rows = []
    for size, dtype, mode, runtime in product(args.sizes, args.dtypes, args.modes, args.runtimes):
        if (mode, runtime) == ('train', 'graph'):
            continue
        cases = list_cases(args, size=size, dtype=dtype, mode=mode, runtime=runtime)
        rows += measure_cases(cases, args)
        measure.write_csv(args.csv, rows)  # after each size, because a long run may be interrupted
    print_rows(rows)
    if args.plot:
        args.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(rows).savefig(args.plot, dpi=120)


if __name__ == '__main__':
    main()
