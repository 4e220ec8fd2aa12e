# SPDX-License-Identifier: Apache-2.0
"""Write a config that trains a shipped model on your own data."""

import json
import shlex
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from zipfile import is_zipfile

from mmengine.config import Config

from mmfocal.engine import check_inputs, check_widths, read_config
from mmfocal.existing_outputs import add_overwrite_argument, check_outputs, restored_on_failure
from mmfocal.models.checkpoint_files import HUB, SUFFIXES
from mmfocal.models.pretrained import SWIN
from mmfocal.own_data import (
    FORMATS,
    OwnData,
    compose,
    has_hidden_folders,
    list_class_folders,
    read_class_folders,
    read_coco,
    read_label_maps,
    share_categories,
    to_coco,
)
from mmfocal.zoo import find_config

SPLITS = ('train', 'val')
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


def positive(text: str) -> int:
    """Read a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f'{text!r}; expected a positive integer')
    return int(text)


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
        '--classes',
        nargs='+',
        help='classes of label maps, beginning with value 0; for other annotations, names and '
        'order of the classes (default: as in the annotations)',
    )
    parser.add_argument(
        '--ignore-zero', action='store_true', help='label maps: 0 is ignored, 1 is the first class'
    )
    parser.add_argument('--epochs', type=positive, help="number of epochs (default: the base's)")
    parser.add_argument('--batch-size', type=positive, help="images per GPU (default: the base's)")
    parser.add_argument(
        '--gpus', type=positive, default=1, help='scales the learning rate (default: 1)'
    )
    parser.add_argument(
        '--weights',
        help='checkpoint from which the backbone starts: of a Focal Transformer, or swin:FILE '
        "(default: the base's)",
    )
    parser.add_argument('--out', required=True, type=Path, help='config to write')
    add_overwrite_argument(parser)
    return parser


def converted(args: Namespace, scope: str) -> dict[str, Path]:
    """Return the files for annotations that are rewritten beside the config, by split."""
    if scope == 'mmpretrain':
        suffix = '.txt' if any(map(has_hidden_folders, (args.train, args.val))) else ''
    else:
        is_converted = scope == 'mmdet' and (args.format != 'coco' or args.classes)
        suffix = '.json' if is_converted else ''
    if not suffix:
        return {}
    return {split: args.out.with_name(f'{args.out.stem}_{split}{suffix}') for split in SPLITS}


def read_folders(args: Namespace, files: dict[str, Path]) -> OwnData:
    """Read class folders; if there are hidden folders too, list the images beside the config."""
    for option, folder in {'--train': args.train, '--val': args.val}.items():
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f'{option} {folder}: no such folder; expected class folders in it'
            )
    data = read_class_folders(args.train, args.val, args.classes or ())
    splits = {}
    for name, file in files.items():
        split = getattr(data, name)
        write(file, list_class_folders(split.labels))
        splits[name] = replace(split, listing=str(file))
    return replace(data, **splits)


def read_boxes(args: Namespace, files: dict[str, Path]) -> OwnData:
    """Read COCO files; convert other formats, and data with ``--classes``, to COCO files first."""
    images = dict(train=args.images, val=args.val_images or args.images)
    labels = dict(train=args.train, val=args.val)
    if files:
        contents = {
            split: to_coco(args.format, labels[split], images[split], args.names)
            for split in SPLITS
        }
        share_categories(list(contents.values()), args.classes or ())
        for split, content in contents.items():
            write(files[split], json.dumps(content))
            labels[split] = str(files[split])
    return read_coco(labels['train'], labels['val'], images['train'], images['val'])


def write(path: Path, text: str) -> None:
    """Write a file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')


def read_data(args: Namespace, scope: str, files: dict[str, Path]) -> OwnData:
    """Read the annotations for the task of the base config."""
    if scope == 'mmpretrain':
        return read_folders(args, files)
    if args.images is None:
        raise ValueError('--images is missing; expected the folder of the images')
    if scope == 'mmseg':
        val_images = args.val_images or args.images
        return read_label_maps(args.train, args.val, args.images, val_images, args.classes)
    return read_boxes(args, files)


def write_checked(text: str, out: Path) -> Config:
    """Write the config and run the checks of a training run."""
    write(out, text)
    cfg = read_config(out)
    check_widths(cfg)
    check_inputs(cfg, SPLITS)
    return cfg


def is_absent(weights: str) -> bool:
    """Return whether a checkpoint is a local file that does not exist; URLs are not tried."""
    name = weights.removeprefix(SWIN)
    is_address = name.startswith(HUB) or '://' in name
    return not is_address and not Path(name).expanduser().is_file()


def holds_tensors(weights: str) -> bool:
    """Return whether a local file has the suffix or the start of a checkpoint."""
    path = Path(weights.removeprefix(SWIN)).expanduser()
    named = path.suffix in (*SUFFIXES, '.pt', '.bin', '.ckpt') or not path.is_file()
    return named or is_zipfile(path)


def new_config(args: Namespace) -> None:
    """Write the config and print the next steps."""
    if args.weights and is_absent(args.weights):
        raise FileNotFoundError(f'--weights {args.weights}: no such file')
    if args.weights and not holds_tensors(args.weights):
        raise ValueError(f'--weights {args.weights}: expected a checkpoint (.pth, .safetensors)')
    base_file = find_config(args.base)
    base = read_config(base_file)
    files = converted(args, base.default_scope)
    written = [args.out, *files.values()]
    check_outputs(written, args.overwrite, inputs=[base_file, args.train, args.val])
    with restored_on_failure(written):
        data = read_data(args, base.default_scope, files)
        text = compose(
            str(Path(args.base).resolve()) if Path(args.base).is_file() else args.base,
            base,
            data,
            batch=args.batch_size,
            gpus=args.gpus,
            epochs=args.epochs,
            ignore_zero=args.ignore_zero,
            weights=args.weights,
        )
        cfg = write_checked(text, args.out)
    print(
        f'{args.out}: {len(data.classes)} classes, {data.train.count} training images, '
        f'{data.val.count} validation images; it passes the checks before training'
    )
    weights = (cfg.model.backbone.get('init_cfg') or {}).get('checkpoint')
    if weights and is_absent(weights):
        print(
            f'The base starts from {weights}, which does not exist: set a file with --weights '
            'or --cfg-options model.backbone.init_cfg.checkpoint=FILE, or start from random '
            'weights with --cfg-options model.backbone.init_cfg=None'
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
