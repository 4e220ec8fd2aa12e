# SPDX-License-Identifier: Apache-2.0
"""Write a config that trains a shipped model on your own data."""

import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from mmfocal.engine import check_inputs, check_widths, read_config
from mmfocal.existing_outputs import add_overwrite_argument, check_outputs, restored_on_failure
from mmfocal.models.checkpoint_files import HUB
from mmfocal.models.pretrained import SWIN
from mmfocal.own_data import (
    FORMATS,
    OwnData,
    compose,
    read_class_folders,
    read_coco,
    read_label_maps,
    to_coco,
)
from mmfocal.zoo import find_config

EXAMPLES = """examples:
  boxes and masks of a COCO file
    new_config.py --base detection/focal_t_maskrcnn_1x --train a.json --val b.json
      --images images --out my.py
  boxes of YOLO
    new_config.py --base detection/focal_t_fasterrcnn_1x --format yolo --names data.yaml
      --train labels/train --val labels/val --images images/train --val-images images/val
      --out my.py
  label maps
    new_config.py --base segmentation/focal_t_upernet_160k --train labels/train --val labels/val
      --images images/train --val-images images/val --classes ground road tree --out my.py
  a folder per class
    new_config.py --base classification/focal_t_in1k --train train --val val --out my.py"""


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument('--base', required=True, help='name of a shipped config, or a file')
    parser.add_argument('--train', required=True, help='training annotations')
    parser.add_argument('--val', required=True, help='validation annotations')
    parser.add_argument('--images', help='folder of the images (not needed with class folders)')
    parser.add_argument('--val-images', help='folder of the validation images, if it differs')
    parser.add_argument(
        '--format',
        choices=FORMATS,
        default='coco',
        help='annotation format of boxes and masks; all but coco are converted to coco beside OUT',
    )
    parser.add_argument('--names', help="YOLO's data.yaml, which names the classes")
    parser.add_argument(
        '--classes', nargs='+', help='classes of label maps, beginning with value 0'
    )
    parser.add_argument(
        '--ignore-zero', action='store_true', help='label maps: 0 is ignored, 1 is the first class'
    )
    parser.add_argument('--epochs', type=int, help="number of epochs (default: the base's)")
    parser.add_argument('--batch-size', type=int, help="images per GPU (default: the base's)")
    parser.add_argument(
        '--gpus', type=int, default=1, help='scales the learning rate (default: 1)'
    )
    parser.add_argument('--out', required=True, type=Path, help='config to write')
    add_overwrite_argument(parser)
    return parser


def _converted(args: Namespace, split: str) -> Path:
    return args.out.with_name(f'{args.out.stem}_{split}.json')


def read_data(args: Namespace, scope: str) -> OwnData:
    """Read the annotations for the task of the base config."""
    if scope == 'mmpretrain':
        return read_class_folders(args.train, args.val)
    if args.images is None:
        raise ValueError('--images is missing; expected the folder of the images')
    val_images = args.val_images or args.images
    if scope == 'mmseg':
        return read_label_maps(args.train, args.val, args.images, val_images, args.classes)
    labels = dict(train=(args.train, args.images), val=(args.val, val_images))
    files = {split: source for split, (source, _) in labels.items()}
    if args.format != 'coco':
        for split, (source, images) in labels.items():
            files[split] = str(_converted(args, split))
            to_coco(args.format, source, images, files[split], args.names)
    return read_coco(files['train'], files['val'], args.images, val_images)


def write_checked(text: str, out: Path) -> Config:
    """Write the config and run the checks of a training."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding='utf-8')
    cfg = read_config(out)
    check_widths(cfg)
    check_inputs(cfg, ('train', 'val'))
    return cfg


def is_absent(weights: str) -> bool:
    """Return whether a checkpoint is a local file that does not exist; addresses are not tried."""
    name = weights.removeprefix(SWIN)
    is_address = name.startswith(HUB) or '://' in name
    return not is_address and not Path(name).expanduser().is_file()


def new_config(args: Namespace) -> None:
    """Write the config and print the next steps."""
    base_file = find_config(args.base)
    written = [args.out]
    if args.format != 'coco':
        written += [_converted(args, split) for split in ('train', 'val')]
    check_outputs(written, args.overwrite, inputs=[base_file, args.train, args.val])
    base = read_config(base_file)
    with restored_on_failure(written):
        data = read_data(args, base.default_scope)
        text = compose(
            str(Path(args.base).resolve()) if Path(args.base).is_file() else args.base,
            base,
            data,
            batch=args.batch_size,
            gpus=args.gpus,
            epochs=args.epochs,
            ignore_zero=args.ignore_zero,
        )
        cfg = write_checked(text, args.out)
    print(
        f'{args.out}: {len(data.classes)} classes, {data.train.count} training images, '
        f'{data.val.count} validation images; it passes the checks before training'
    )
    weights = (cfg.model.backbone.get('init_cfg') or {}).get('checkpoint')
    if weights and is_absent(weights):
        print(
            f'The base starts from {weights}, which does not exist: name a file by '
            '--cfg-options model.backbone.init_cfg.checkpoint=FILE, or start from random weights '
            'by --cfg-options model.backbone.init_cfg=None'
        )
    print(f'Train it:\n  mmfocal train {shlex.quote(str(args.out))}')


def main(argv: Sequence[str] | None = None) -> None:
    """Write the config of the command line."""
    args = make_parser().parse_args(argv)
    try:
        new_config(args)
    except (OSError, ImportError, ValueError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
