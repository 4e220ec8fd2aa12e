# SPDX-License-Identifier: Apache-2.0
"""Make the digit scenes: a data set for detection, segmentation and classification."""

import argparse
import sys
import time
from pathlib import Path

from rich.progress import track

from mmfocal.datasets.digit_scenes import DigitSceneParams, build
from mmfocal.existing_outputs import check_outputs
from mmfocal.visualization.contact_sheet import save_contact_sheet


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    default = DigitSceneParams()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        '--out', type=Path, default=Path('data/digit_scenes'), help='folder to write'
    )
    parser.add_argument(
        '--train', type=int, default=default.train, help='number of training scenes'
    )
    parser.add_argument('--val', type=int, default=default.val, help='number of validation scenes')
    for name, meaning in dict(
        image_size=('H', 'W', 'size of a scene in pixels'),
        digits=('MIN', 'MAX', 'number of digits in a scene'),
        digit_size=('MIN', 'MAX', 'longer side of a digit in pixels'),
    ).items():
        option = f'--{name.replace("_", "-")}'
        parser.add_argument(
            option,
            type=int,
            nargs=2,
            metavar=meaning[:2],
            default=getattr(default, name),
            help=meaning[2],
        )
    parser.add_argument(
        '--crop-size', type=int, default=default.crop_size, help='side of a classification image'
    )
    parser.add_argument(
        '--crop-views',
        type=int,
        default=default.crop_views,
        help='classification images of each training scan',
    )
    parser.add_argument('--seed', type=int, default=default.seed, help='seed of the scenes')
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace a data set that is damaged or has other parameters',
    )
    parser.add_argument(
        '--contact-sheet',
        type=Path,
        help='image of some scenes (default: OUT/contact_sheet.png)',
    )
    return parser.parse_args()


def main() -> None:
    """Generate the set and its contact sheet, or report that both exist."""
    args = parse_args()
    start = time.perf_counter()
    try:
        params = DigitSceneParams(
            train=args.train,
            val=args.val,
            image_size=tuple(args.image_size),
            digits=tuple(args.digits),
            digit_size=tuple(args.digit_size),
            crop_size=args.crop_size,
            crop_views=args.crop_views,
            seed=args.seed,
        )
        built = build(args.out, params, overwrite=args.overwrite, track=track)
        if built and args.contact_sheet:
            check_outputs([args.contact_sheet], args.overwrite)
    except (ValueError, FileExistsError) as error:
        sys.exit(f'error: {error}')
    if built:
        print(f'made {args.out} in {time.perf_counter() - start:.1f} s')
    else:
        print(f'reusing {args.out}: it is complete and has these parameters')
    sheet = args.contact_sheet or args.out / 'contact_sheet.png'
    if built or not sheet.exists():
        save_contact_sheet(args.out / 'annotations/instances_val.json', args.out / 'val', sheet)
        print(f'image of some scenes: {sheet}')


if __name__ == '__main__':
    main()
