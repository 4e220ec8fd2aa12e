# SPDX-License-Identifier: Apache-2.0
"""Count parameters and FLOPs of a config by module, without data or weights.

FLOPs are multiply-accumulates (MACs), as in published tables.
"""

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from mmfocal.analysis.complexity import CONVENTIONS, Complexity, complexity
from mmfocal.engine import read_config
from mmfocal.engine.options import KeyValues, merge_options
from mmfocal.engine.startup import explained
from mmfocal.errors import in_one_line
from mmfocal.zoo import find_config


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a detector, segmentor or classifier')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='height and width of the image (default: those of the test pipeline)',
    )
    parser.add_argument(
        '--convention',
        nargs='*',
        choices=CONVENTIONS,
        default=['default'],
        metavar='NAME',
        help=f'what to count: {", ".join(CONVENTIONS)}; without a name, all',
    )
    parser.add_argument('--depth', type=int, default=2, help='levels of submodules (default: 2)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=KeyValues, default={}, help='settings to override'
    )
    return parser


def make_table(model: Complexity, conventions: list[str], depth: int) -> Table:
    """Make a table with one row per module and the total, and FLOPs by convention."""
    table = Table(
        'module', 'type', caption='parameters in 10^6, FLOPs in 10^9 multiply-accumulates'
    )
    for header in ('params', *conventions):
        table.add_column(header, justify='right')
    by_convention = [model.by_module(name, depth) for name in conventions]
    for row in zip(*by_convention, strict=True):
        level = row[0].name.count('.')
        name = '  ' * level + row[0].name.rpartition('.')[2]
        flops = [f'{module.flops / 1e9:.2f}' for module in row]
        table.add_row(name, row[0].type, f'{row[0].params / 1e6:.3f}', *flops)
    table.add_section()
    total = [f'{model.flops(name) / 1e9:.2f}' for name in conventions]
    table.add_row('total', '', f'{model.params / 1e6:.3f}', *total)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Count and print."""
    args = make_parser().parse_args(argv)
    cfg = read_config(find_config(args.config))
    merge_options(cfg, args.cfg_options)
    with explained(cfg):
        model = complexity(cfg, args.shape)
    conventions = args.convention or list(CONVENTIONS)
    table = make_table(model, conventions, args.depth)
    console = Console(highlight=False)
    if not console.is_terminal:  # rich wraps at 80 columns otherwise
        console.width = 240
    console.print(table)
    for name in conventions:
        height, width = model.shape_of(name)
        convention = CONVENTIONS[name]
        print(f'{name}, {height}x{width}: {convention.meaning}. Used by: {convention.source}.')


if __name__ == '__main__':
    with in_one_line():
        main()
