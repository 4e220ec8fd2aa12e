# SPDX-License-Identifier: Apache-2.0
"""Print and plot the receptive field and the number of keys of a query at each stage.

    python tools/visualize/receptive_field.py CONFIG_OR_RUN
    python tools/visualize/receptive_field.py CONFIG --checkpoint FILE --effective-stage 2

The first command computes both from the config (paper, Fig. 3). The second one also measures, from
gradients, which pixels change the output at the center.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmfocal.existing_outputs import replacement
from mmfocal.visualization.models import NONE, load_backbone, read_model_config
from mmfocal.visualization.receptive_field import (
    effective_field,
    field_of,
    save_effective_field,
    save_receptive_field,
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='run folder, config file or config name')
    parser.add_argument(
        '--checkpoint', help="file with the backbone (default: the run's, or random weights)"
    )
    parser.add_argument(
        '--effective-stage', type=int, help='measure the output of this stage, from 0'
    )
    parser.add_argument(
        '--size', type=int, default=224, help='side of the images for the measurement'
    )
    parser.add_argument('--out', type=Path, default=Path('.'), help='folder to write')
    return parser.parse_args()


def _tell_replacement(path: Path) -> None:
    if line := replacement(path):
        print(line)


def main() -> None:
    """Print the table and draw one or two images."""
    args = parse_args()
    try:
        is_run = Path(args.config).is_dir()
        cfg, checkpoint = read_model_config(
            args.config, args.checkpoint or (None if is_run else NONE)
        )
        model = load_backbone(cfg, checkpoint)
    except (FileNotFoundError, ImportError, ValueError) as error:
        sys.exit(f'error: {error}')
    if args.effective_stage is not None and args.effective_stage not in model.out_indices:
        sys.exit(f'error: --effective-stage must be one of {model.out_indices}')
    args.out.mkdir(parents=True, exist_ok=True)
    table = Table('stage', 'fine keys', 'coarse keys', 'all', 'side (tokens)', 'side (pixels)')
    geometries = [stage.blocks[0].geometry for stage in model.layers]
    for stage, geometry in enumerate(geometries):
        field = field_of(geometry)
        fine, *coarse = field.keys
        cells = ' + '.join(map(str, coarse)) or '0'
        row = (stage, fine, cells, sum(field.keys), field.side, field.side * 4 * 2**stage)
        table.add_row(*map(str, row))
    Console(width=100).print(table)
    path = args.out / 'receptive_field.png'
    _tell_replacement(path)
    save_receptive_field(geometries, path)
    print(f'wrote {path}')
    if args.effective_stage is not None:
        path = args.out / f'effective_field_stage{args.effective_stage}.png'
        _tell_replacement(path)
        field = effective_field(model, args.size, args.effective_stage)
        save_effective_field(field, f'output of stage {args.effective_stage}', path)
        print(f'wrote {path}')


if __name__ == '__main__':
    main()
