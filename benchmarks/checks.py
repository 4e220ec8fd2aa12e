# SPDX-License-Identifier: Apache-2.0
"""Time of the start-up check for data of COCO's and ImageNet's size.

The data are made up: annotations with as many images, objects and bytes as COCO 2017, and class
folders with as many files as ImageNet-1K. All names are links to few images.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import measure
import numpy as np
from measure import Row
from mmengine.config import Config

from mmfocal.engine.checks import check_run

COCO = dict(train=(118_287, 860_001), val=(5_000, 36_781))  # images and objects
IMAGENET = dict(train=1_281_167, val=50_000)
HEIGHT, WIDTH = 480, 640
CROWDS = 86  # every 86th object of COCO is a crowd, which has RLE
LINKS = 50_000  # file systems limit the links of a file
CLASSES = tuple(f'class {number}' for number in range(1, 81))


def _write_images(paths: Iterator[Path]) -> None:
    """Write one image, and links to it by the other names."""
    noise = np.random.default_rng(0).integers(256, size=(60, 80, 3), dtype=np.uint8)
    pixels = cv2.resize(noise, (WIDTH, HEIGHT))  # as large a file as a photograph
    for index, path in enumerate(paths):
        if index % LINKS == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels)
            first = path
        else:
            path.parent.mkdir(exist_ok=True)
            os.link(first, path)


# ---- COCO ---------------------------------------------------------------------------------------


def _objects(count: int, images: int) -> Iterator[dict[str, Any]]:
    """Yield annotations; outlines are ellipses of 3 to 45 corners, as long as COCO's on average.

    Args:
        count: Number of annotations.
        images: Number of images over which they are distributed.
    """
    rng = np.random.default_rng(0)
    for number in range(1, count + 1):
        corners = int(rng.integers(3, 46))
        angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        radii = rng.uniform(5, 100, 2)
        center = rng.uniform(radii, (WIDTH - radii[0], HEIGHT - radii[1]))
        outline = center + radii * np.stack((np.cos(angles), np.sin(angles)), 1)
        low, high = outline.min(0), outline.max(0)
        is_crowd = number % CROWDS == 0
        rle = dict(size=[HEIGHT, WIDTH], counts=[100, 200, HEIGHT * WIDTH - 300])
        yield dict(
            segmentation=rle if is_crowd else [outline.round(2).ravel().tolist()],
            area=round(float(np.pi * radii.prod()), 4),
            iscrowd=int(is_crowd),
            image_id=1 + number % images,
            bbox=np.concatenate((low, high - low)).round(2).tolist(),
            category_id=1 + number % len(CLASSES),
            id=number,
        )


def make_coco(folder: Path, split: str, images: int, objects: int) -> None:
    """Write the images and annotations of a split.

    Args:
        folder: Where to write.
        split: ``'train'`` or ``'val'``.
        images: Number of images.
        objects: Number of annotations.
    """
    names = [f'{number:012d}.jpg' for number in range(1, images + 1)]
    _write_images(folder / split / name for name in names)
    content = dict(
        images=[
            dict(id=number, file_name=name, height=HEIGHT, width=WIDTH)
            for number, name in enumerate(names, 1)
        ],
        categories=[dict(id=number, name=name) for number, name in enumerate(CLASSES, 1)],
        annotations=list(_objects(objects, images)),
    )
    (folder / f'{split}.json').write_text(json.dumps(content))


def coco_config(folder: Path, splits: Sequence[str]) -> Config:
    """Return the data of a config that trains, and scores if there is a second split, masks."""
    cfg = Config(dict(default_scope='mmdet'))
    for split in splits:
        dataset = dict(
            type='CocoDataset',
            data_root=str(folder),
            ann_file=f'{split}.json',
            data_prefix=dict(img=f'{split}/'),
            metainfo=dict(classes=CLASSES),
            test_mode=split == 'val',
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=[dict(type='LoadAnnotations', with_bbox=True, with_mask=True)],
        )
        cfg[f'{split}_dataloader'] = dict(batch_size=2, num_workers=2, dataset=dataset)
    if 'val' in splits:
        path = str(folder / 'val.json')
        cfg.val_evaluator = dict(type='CocoMetric', ann_file=path, metric=['bbox', 'segm'])
    return cfg


# ---- ImageNet -----------------------------------------------------------------------------------


def make_imagenet(folder: Path, split: str, images: int) -> None:
    """Write the class folders of a split.

    Args:
        folder: Where to write.
        split: ``'train'`` or ``'val'``.
        images: Number of images, distributed over 1,000 classes.
    """
    _write_images(
        folder / split / f'n{number % 1000:08d}' / f'{number}.JPEG' for number in range(images)
    )


def imagenet_config(folder: Path, splits: Sequence[str]) -> Config:
    """Return the data of a config of a classifier."""
    cfg = Config(dict(default_scope='mmpretrain'))
    for split in splits:
        dataset = dict(type='ImageNet', data_root=str(folder), split=split, pipeline=[])
        cfg[f'{split}_dataloader'] = dict(batch_size=2, num_workers=2, dataset=dataset)
    return cfg


# ---- the measurement ----------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--scale', type=float, default=1, metavar='X', help='share of the sizes (default: 1)'
    )
    measure.add_common_arguments(parser)
    parser.set_defaults(device='cpu')
    return measure.parse(parser, argv)


def measure_all(folder: Path, args: argparse.Namespace) -> list[Row]:
    """Write the data, and return a row per check."""
    images, objects = {}, {}
    for split, counts in COCO.items():
        sizes = [max(1, int(args.scale * count)) for count in counts]
        images['coco', split], objects['coco', split] = sizes
        make_coco(folder / 'coco', split, *sizes)
    for split, count in IMAGENET.items():
        images['imagenet', split] = max(1000, int(args.scale * count))
        make_imagenet(folder / 'imagenet', split, images['imagenet', split])
    checks = {
        (name, splits): partial(check_run, make(folder / name, splits), list(splits))
        for name, make in (('coco', coco_config), ('imagenet', imagenet_config))
        for splits in (('train',), ('train', 'val'))
    }
    timings = {key: partial(measure.seconds_of, check, 'cpu') for key, check in checks.items()}
    times, why = measure.steadily(
        lambda: measure.take_turns(timings, args.rounds), list(timings), args.max_spread
    )
    return [
        dict(
            data=name,
            splits='+'.join(splits),
            images=sum(images[name, split] for split in splits),
            objects=sum(objects.get((name, split), 0) for split in splits),
        )
        | measure.time_columns(times.get((name, splits)), None)
        | dict(note=why)
        for name, splits in checks
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the measurements of the command line."""
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_all(Path(folder), args)
    measure.write_csv(args.csv, rows)
    measure.print_table('Start-up check', list(rows[0]), [list(row.values()) for row in rows])


if __name__ == '__main__':
    main()
