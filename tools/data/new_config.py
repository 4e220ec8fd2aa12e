# SPDX-License-Identifier: Apache-2.0
"""Write a config that trains a shipped model on data of your own."""

import json
import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mmengine.config import Config

from mmfocal.engine import check_inputs, check_widths, read_config
from mmfocal.models.checkpoint_files import HUB
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
    parser.add_argument('--train', required=True, help='annotations to learn from')
    parser.add_argument('--val', required=True, help='annotations to validate on')
    parser.add_argument('--images', help='folder of the images (class folders need none)')
    parser.add_argument('--val-images', help='folder of the validation images, if another')
    parser.add_argument(
        '--format',
        choices=FORMATS,
        default='coco',
        help='of boxes and masks; others than coco are converted to it beside OUT',
    )
    parser.add_argument('--names', help="YOLO's data.yaml, which names the classes")
    parser.add_argument(
        '--classes',
        nargs='+',
        help='names of the values of label maps, from 0; otherwise names and order of the classes '
        '(those of the annotations)',
    )
    parser.add_argument(
        '--ignore-zero', action='store_true', help='label maps: 0 is no class, 1 is the first'
    )
    parser.add_argument(
        '--weights',
        help="checkpoint that the backbone starts from: of this package's models, or swin:FILE "
        "(the base's)",
    )
    parser.add_argument('--epochs', type=int, help="how often to see each image (the base's)")
    parser.add_argument('--batch-size', type=int, help="images per GPU (the base's)")
    parser.add_argument('--gpus', type=int, default=1, help='for the learning rate (default: 1)')
    parser.add_argument('--out', required=True, type=Path, help='config to write')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing config')
    return parser


class Outputs:
    """Files of a command; if it fails, they are again as they were before.

    Args:
        sources: Files that are never replaced.
        overwrite: Whether to replace others.
    """

    def __init__(self, sources: Iterable[str], overwrite: bool) -> None:
        self.sources = [Path(source).resolve() for source in sources]
        self.overwrite = overwrite
        self.before: dict[Path, bytes | None] = {}

    def reject_existing(self, path: Path) -> None:
        """Raise FileExistsError if a file must not be replaced."""
        if path.resolve() in self.sources:
            raise FileExistsError(f'{path} is also an input; take another name for --out')
        if path.exists() and not self.overwrite:
            raise FileExistsError(f'{path} exists; --overwrite replaces it')

    def write(self, path: Path, text: str) -> str:
        """Write a file and return its name."""
        self.reject_existing(path)
        self.before[path] = path.read_bytes() if path.exists() else None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
        return str(path)

    def restore(self) -> None:
        """Undo every write."""
        for path, content in self.before.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)


def beside(out: Path, split: str, suffix: str) -> Path:
    """Return the name of annotations that are rewritten beside the config."""
    return out.with_name(f'{out.stem}_{split}{suffix}')


def read_folders(args: Namespace, outputs: Outputs) -> OwnData:
    """Read class folders; if there are hidden folders too, list the images beside the config."""
    data = read_class_folders(args.train, args.val, args.classes or ())
    if not any(map(has_hidden_folders, (args.train, args.val))):
        return data
    splits = {}
    for name in ('train', 'val'):
        split = getattr(data, name)
        listing = outputs.write(beside(args.out, name, '.txt'), list_class_folders(split.labels))
        splits[name] = replace(split, listing=listing)
    return replace(data, **splits)


def read_boxes(args: Namespace, outputs: Outputs) -> OwnData:
    """Read COCO files; other formats, and data whose ``--classes`` are given, become such."""
    images = dict(train=args.images, val=args.val_images or args.images)
    files = dict(train=args.train, val=args.val)
    if args.format != 'coco' or args.classes:
        contents = {
            split: to_coco(args.format, files[split], images[split], args.names) for split in files
        }
        share_categories(list(contents.values()), args.classes or ())
        for split, content in contents.items():
            target = beside(args.out, split, '.json')
            files[split] = outputs.write(target, json.dumps(content))
    return read_coco(files['train'], files['val'], images['train'], images['val'])


def read_data(args: Namespace, scope: str, outputs: Outputs) -> OwnData:
    """Read the annotations for the task of the base config."""
    if scope == 'mmpretrain':
        return read_folders(args, outputs)
    if args.images is None:
        raise ValueError('--images is missing: the folder of the images')
    if scope == 'mmseg':
        val_images = args.val_images or args.images
        return read_label_maps(args.train, args.val, args.images, val_images, args.classes)
    return read_boxes(args, outputs)


def checked(config: str) -> Config:
    """Run the checks of a training on a config."""
    cfg = read_config(config)
    check_widths(cfg)
    check_inputs(cfg, ('train', 'val'))
    return cfg


def is_absent(weights: str) -> bool:
    """Whether a checkpoint is a local file that does not exist; addresses are not tried."""
    name = weights.removeprefix(SWIN)
    is_address = name.startswith(HUB) or '://' in name
    return not is_address and not Path(name).expanduser().is_file()


def new_config(args: Namespace, outputs: Outputs) -> None:
    """Write the config and print the next steps."""
    outputs.reject_existing(args.out)
    if args.weights and is_absent(args.weights):
        raise FileNotFoundError(f'--weights {args.weights}: no such file')
    base = read_config(find_config(args.base))
    data = read_data(args, base.default_scope, outputs)
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
    cfg = checked(outputs.write(args.out, text))
    print(
        f'{args.out}: {len(data.classes)} classes, {data.train.count} images to learn from, '
        f'{data.val.count} to validate on; it passes the checks before training'
    )
    weights = (cfg.model.backbone.get('init_cfg') or {}).get('checkpoint')
    if weights and is_absent(weights):
        print(
            f'The base starts from {weights}, which is not there: name a file by --weights or '
            '--cfg-options model.backbone.init_cfg.checkpoint=FILE, or start from random weights '
            'by --cfg-options model.backbone.init_cfg=None'
        )
    print(f'Train it:\n  mmfocal train {shlex.quote(str(args.out))}')


def main(argv: Sequence[str] | None = None) -> None:
    """Write the config of the command line."""
    args = make_parser().parse_args(argv)
    outputs = Outputs((args.train, args.val), args.overwrite)
    try:
        new_config(args, outputs)
    except BaseException as error:
        outputs.restore()
        if isinstance(error, (OSError, ImportError, ValueError)):
            sys.exit(f'error: {error}')
        raise


if __name__ == '__main__':
    main()
