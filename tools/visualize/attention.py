# SPDX-License-Identifier: Apache-2.0
"""Draw the attention of one query of a Focal Transformer over an image, at every level.

    python tools/visualize/attention.py CONFIG CHECKPOINT IMAGE --query 80 60 --stage 0 --head 2

CHECKPOINT is any file that holds the backbone, or "none" for random weights.
"""

import argparse
import sys
from pathlib import Path

from mmfocal.engine import read_config
from mmfocal.existing_outputs import add_overwrite_argument, check_outputs
from mmfocal.visualization.attention_figures import save_attention
from mmfocal.visualization.attention_maps import attention_map
from mmfocal.visualization.models import load_backbone, normalize, read_image


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of any task with a FocalTransformer')
    parser.add_argument('checkpoint', help='file with the backbone, or "none"')
    parser.add_argument('image', type=Path)
    parser.add_argument('--stage', type=int, default=0, help='0 to 3 (default: 0)')
    parser.add_argument('--block', type=int, default=0, help='block of the stage (default: 0)')
    parser.add_argument('--head', type=int, help='head (default: the mean of all)')
    parser.add_argument(
        '--query',
        type=int,
        nargs=2,
        metavar=('X', 'Y'),
        help='pixel of the query, column and row (default: the center)',
    )
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('W', 'H'), help='resize the image to this size first'
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='image to write (default: IMAGE_attention.png in the current folder)',
    )
    add_overwrite_argument(parser)
    return parser.parse_args()


def main() -> None:
    """Draw one image."""
    args = parse_args()
    out = args.out or Path(f'{args.image.stem}_attention.png')
    try:
        check_outputs([out], args.overwrite, inputs=[args.image])
        cfg = read_config(args.config)
        image = read_image(args.image, args.size)
        model = load_backbone(cfg, args.checkpoint)
        query = tuple(args.query or (image.shape[1] // 2, image.shape[0] // 2))
        attention = attention_map(
            model, normalize(cfg, image), query, args.stage, args.block, args.head
        )
    except (OSError, ImportError, ValueError) as error:
        sys.exit(f'error: {error}')
    out.parent.mkdir(parents=True, exist_ok=True)
    save_attention(image, attention, out)
    for level, share in enumerate(attention.shares):
        name = 'fine' if level == 0 else f'coarse level {level - 1}'
        print(f'{name}: {100 * share:.1f} % of the attention')
    print(f'wrote {out}')


if __name__ == '__main__':
    main()
