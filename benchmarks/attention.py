# SPDX-License-Identifier: Apache-2.0
"""Speed of the attention operator at the stages of Focal-T, compared with the roofline.

The baseline, ``window``, is Swin's attention: PyTorch's fused attention of each window to its 49
tokens. The backward pass is timed without the forward pass.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import measure
import torch
import torch.nn.functional as F
from backbone import CLASSIFICATION, DETECTION
from measure import DTYPES, Row, Size, Step
from torch import Tensor

from mmfocal import FocalTransformer
from mmfocal.models.focal_transformer import FocalAttention
from mmfocal.ops.focal_attention import FocalGeometry, FocalInputs, focal_attention
from mmfocal.ops.focal_attention.api import BACKENDS
from mmfocal.ops.focal_attention.bias import bias_tables, relative_index
from mmfocal.ops.focal_attention.geometry import window_partition, window_reverse

BASELINE = 'window'
TINY = FocalTransformer.arch_zoo['tiny']


@dataclass(frozen=True)
class Case:
    """One candidate: a backend, or the baseline, at one stage (1 to 4) of Focal-T."""

    impl: str
    dtype: str
    direction: str
    stage: int
    size: Size
    device: str

    @property
    def geometry(self) -> FocalGeometry:
        dense = max(self.size[:2]) > 224
        focal_window = (DETECTION if dense else CLASSIFICATION)[self.stage - 1]
        return FocalGeometry(7, 0 if focal_window == 1 else 3, focal_window, 2)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``B, H, W, C`` of the stage, padded to whole windows."""
        stride = 2 ** (self.stage + 1)
        height, width = (7 * math.ceil(side / stride / 7) for side in self.size[:2])
        return self.size.batch, height, width, TINY['embed_dims'] * 2 ** (self.stage - 1)

    @property
    def num_heads(self) -> int:
        return TINY['num_heads'][self.stage - 1]

    @property
    def keys(self) -> int:
        """Number of keys of a window, duplicates counted once."""
        geometry = self.geometry
        fine = geometry.window_size**2
        if self.impl == BASELINE:
            return fine
        fine += geometry.num_neighbors
        fine = sum(key < fine for key in geometry.square_sources[0])
        return fine + sum(region.side**2 for region in geometry.regions[1:])


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('--sizes', nargs='+', type=measure.parse_size, default=[Size(784, 1344, 1)])
    add('--stages', nargs='+', type=int, choices=range(1, 5), default=[1, 2, 3, 4])
    add('--impls', nargs='+', choices=BACKENDS, default=list(BACKENDS), help='(default: all)')
    add('--dtypes', nargs='+', choices=DTYPES, default=['fp32'], help='of the tensors')
    add('--directions', nargs='+', choices=['fwd', 'bwd'], default=['fwd', 'bwd'])
    measure.add_common_arguments(parser)
    return measure.parse(parser, argv)


def window_attention(qkv: Tensor, own_table: Tensor, scale: float) -> Tensor:
    """Attend within each 7x7 window: ``(B, H, W, 3C), (169, h)`` -> ``(B, H, W, C)``."""
    batch, height, width, _ = qkv.shape
    windows = window_partition(qkv, 7).flatten(0, 1)  # (B * N, 49, 3C)
    q, k, v = windows.unflatten(-1, (3, own_table.shape[1], -1)).permute(2, 0, 3, 1, 4)
    bias = own_table[relative_index(7, 7, qkv.device)].permute(2, 0, 1).to(qkv.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], scale=scale)
    out = out.transpose(1, 2).flatten(2).unflatten(0, (batch, -1))
    return window_reverse(out, 7, height, width)


def make_step(case: Case) -> Step:
    """Return the timed step: a forward pass, or a backward pass of a retained graph."""
    torch.manual_seed(0)
    batch, height, width, dim = case.shape
    options = dict(device=case.device, dtype=DTYPES[case.dtype], requires_grad=True)
    tokens = height * width
    if case.impl != BASELINE:
        tokens = case.geometry.num_tokens(height, width)
    qkv = torch.randn(batch, tokens, 3 * dim, **options)
    bias = FocalAttention(dim, case.num_heads, case.geometry).to(case.device).bias
    scale = (dim // case.num_heads) ** -0.5

    def forward() -> Tensor:
        if case.impl == BASELINE:
            return window_attention(qkv.unflatten(1, (height, width)), bias.window, scale)
        inputs = FocalInputs(qkv, (height, width), bias, case.geometry, scale)
        return focal_attention(inputs, case.impl)

    if case.direction == 'fwd':
        return torch.no_grad()(forward)
    inputs = [qkv, *([bias.window] if case.impl == BASELINE else bias_tables(bias))]
    out = forward()
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)


def work(case: Case) -> tuple[int, int]:
    """Return FLOPs and minimum memory traffic in bytes: each map is read or written once.

    Forward: two products; q, k, v are read, the output is written. Backward: four products; the
    output's gradient is also read, and all gradients are written. Recomputation and intermediate
    results of a backend are not counted. The tables are small and not counted.
    """
    batch, height, width, dim = case.shape
    tokens = batch * height * width
    flops = 2 * 2 * tokens * case.keys * dim
    cells = 0 if case.impl == BASELINE else tokens // 49
    maps = 3 * tokens * dim + 2 * cells * dim
    moved = (maps + tokens * dim) * DTYPES[case.dtype].itemsize
    if case.direction == 'fwd':
        return flops, moved
    return 2 * flops, moved + maps * DTYPES[case.dtype].itemsize


def make_row(
    case: Case, times: list[float] | None, baseline: list[float] | None, note: str
) -> Row:
    """Return the row of a case; ``times`` is None if it did not run, and ``note`` says why."""
    _, height, width, dim = case.shape
    row = dict(impl=case.impl, dtype=case.dtype, direction=case.direction, stage=case.stage)
    row |= case.size._asdict() | dict(map=f'{height}x{width}x{dim}', keys=case.keys)
    row |= measure.time_columns(times, baseline) | dict(baseline=BASELINE)
    flops, moved = work(case)
    matmul = measure.matmul_rate(case.device, case.dtype)
    reachable = min(matmul, flops / moved * measure.copy_rate(case.device))
    row |= dict(gflop_per_s=None, gbyte_per_s=None, roofline_gflop_per_s=reachable / 1e9)
    row['of_roofline'] = None
    if times:
        seconds = row['ms'] / 1000
        row |= dict(gflop_per_s=flops / seconds / 1e9, gbyte_per_s=moved / seconds / 1e9)
        row['of_roofline'] = flops / seconds / reachable
    return row | dict(note=note)


def measure_impls(args: argparse.Namespace, **how) -> list[Row]:
    """Measure the baseline and all backends in turn."""
    cases = [Case(impl, device=args.device, **how) for impl in (BASELINE, *args.impls)]
    started = {case: measure.start(make_step, case, args.device) for case in cases}
    steps = {case: step for case, (step, _, _) in started.items() if step}
    times, why = measure.steadily(
        lambda: measure.alternate(steps, args.device, args.rounds), cases[:1], args.max_spread
    )
    beside = times.get(cases[0])
    return [make_row(case, times.get(case), beside, started[case][2] or why) for case in cases]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the measurements of the command line."""
    args = parse_args(argv)
    rows = []
    for size, dtype, direction, stage in product(
        args.sizes, args.dtypes, args.directions, args.stages
    ):
        rows += measure_impls(args, size=size, dtype=dtype, direction=direction, stage=stage)
        measure.write_csv(args.csv, rows)
    measure.print_table('Attention', list(rows[0]), [list(row.values()) for row in rows])
    rates = [f'{name} {measure.matmul_rate(args.device, name) / 1e9:.0f}' for name in args.dtypes]
    copied = measure.copy_rate(args.device) / 1e9
    print(f'This machine: GFLOP/s of a matrix product {", ".join(rates)}; copy {copied:.1f} GB/s.')


if __name__ == '__main__':
    main()
