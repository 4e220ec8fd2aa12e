# SPDX-License-Identifier: Apache-2.0
"""Draw the attention of one query of a Focal Transformer over an image, at every level.

    python tools/visualize/attention.py RUN IMAGE --query 80 60 --stage 0 --head 2
    python tools/visualize/attention.py CONFIG CHECKPOINT IMAGE --query 80 60

RUN is the folder of a run, CHECKPOINT any file that holds the backbone, or "none" for random
weights.
"""

import argparse
import sys
from pathlib import Path

from mmfocal.existing_outputs import add_overwrite_argument, check_outputs
from mmfocal.visualization.attention_figures import save_attention
from mmfocal.visualization.attention_maps import attention_map
from mmfocal.visualization.models import (
    checkpoint_and_image,
    load_backbone,
    normalize,
    read_image,
    read_model_config,
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='run folder, config file or config name')
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='[CHECKPOINT] IMAGE',
        help='checkpoint or "none" (only after a config), then the image',
    )
    parser.add_argument('--stage', type=int, default=0, help='stage, from 0 (default: 0)')
    parser.add_argument('--block', type=int, default=0, help='block, from 0 (default: 0)')
    parser.add_argument('--head', type=int, help='head, from 0 (default: the mean of all)')
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
    try:
        checkpoint, path = checkpoint_and_image(args.inputs)
        out = args.out or Path(f'{path.stem}_attention.png')
        check_outputs([out], args.overwrite, inputs=[path])
        cfg, checkpoint = read_model_config(args.config, checkpoint)
        image = read_image(path, args.size)
        model = load_backbone(cfg, checkpoint)
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
