# SPDX-License-Identifier: Apache-2.0
"""Write COCO instances as label maps: in ADE20K's format for mmseg, in COCO-Stuff's for HTC."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from mmfocal.datasets.label_maps import FOLDERS, write_label_maps, write_stuff_maps


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'coco_root', type=Path, help='folder with annotations/instances_*2017.json and *2017/'
    )
    parser.add_argument(
        '--label-maps',
        type=Path,
        metavar='OUT',
        help='write images, label maps (0: none, 1...: categories) and classes.txt in the layout '
        'of ADE20K',
    )
    parser.add_argument(
        '--stuff-maps',
        type=Path,
        metavar='OUT',
        help='write label maps (255: none, else category id - 1) in the format of stuffthingmaps',
    )
    parser.add_argument('--splits', nargs='+', choices=list(FOLDERS), default=list(FOLDERS))
    parser.add_argument('--copy', action='store_true', help='copy the images instead of linking')
    parser.add_argument('--overwrite', action='store_true', help='replace files of the same names')
    args = parser.parse_args(argv)
    if not (args.label_maps or args.stuff_maps):
        parser.error('nothing to write: --label-maps OUT, --stuff-maps OUT or both')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Write the label maps of the command line."""
    args = parse_args(argv)
    common = dict(splits=args.splits, overwrite=args.overwrite, track=track)
    try:
        if args.label_maps:
            count = write_label_maps(args.coco_root, args.label_maps, copy=args.copy, **common)
            print(f'{args.label_maps}: {count} label maps')
        if args.stuff_maps:
            count = write_stuff_maps(args.coco_root, args.stuff_maps, **common)
            print(f'{args.stuff_maps}: {count} stuff maps')
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
