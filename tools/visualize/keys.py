# SPDX-License-Identifier: Apache-2.0
"""Draw the keys of a query at every level, for any window, expand size and focal window.

python tools/visualize/keys.py --window-size 7 --expand-size 3 --focal-window 7 --out keys.png
"""

import argparse
import sys
from pathlib import Path

from mmfocal.existing_outputs import add_overwrite_argument, check_outputs
from mmfocal.ops.focal_attention import FocalGeometry
from mmfocal.visualization.attention_figures import save_keys


def main() -> None:
    """Draw one image."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in dict(window_size=7, expand_size=3, focal_window=7, focal_level=2).items():
        option = f'--{name.replace("_", "-")}'
        parser.add_argument(option, type=int, default=value, help=f'(default: {value})')
    parser.add_argument(
        '--map',
        type=int,
        nargs=2,
        default=(8, 8),
        metavar=('ROWS', 'COLUMNS'),
        help='size of the map in windows',
    )
    parser.add_argument('--out', type=Path, default=Path('keys.png'), help='image to write')
    add_overwrite_argument(parser)
    args = parser.parse_args()
    try:
        check_outputs([args.out], args.overwrite)
        geometry = FocalGeometry(
            args.window_size, args.expand_size, args.focal_window, args.focal_level
        )
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    save_keys(geometry, tuple(args.map), args.out)
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
