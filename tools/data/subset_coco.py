# SPDX-License-Identifier: Apache-2.0
"""Write a COCO annotation file of a few images, for overfitting, debugging or drawing."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from mmfocal.existing_outputs import add_overwrite_argument, check_outputs
from mmfocal.own_data.annotations import load_coco


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('annotations', type=Path, help='COCO instances json')
    parser.add_argument('out', type=Path, help='json to write')
    parser.add_argument(
        '--images',
        type=int,
        required=True,
        help='number of images, taken in the order of the file',
    )
    parser.add_argument(
        '--instances',
        type=int,
        nargs=2,
        metavar=('MIN', 'MAX'),
        default=(1, 10**6),
        help='take only images with MIN to MAX instances and without crowds',
    )
    add_overwrite_argument(parser)
    return parser.parse_args()


def subset(content: dict, images: int, instances: tuple[int, int]) -> dict:
    """Keep the first images with the given number of instances and without crowds.

    Args:
        content: Parsed COCO instances file.
        images: Number of images to keep.
        instances: Minimum and maximum number of instances of an image.

    Returns:
        The file's content with fewer images and annotations; categories stay.

    Raises:
        ValueError: If there are fewer such images.
    """
    counts = Counter(annotation['image_id'] for annotation in content['annotations'])
    crowded = {a['image_id'] for a in content['annotations'] if a.get('iscrowd')}
    low, high = instances
    chosen = [
        image
        for image in content['images']
        if low <= counts[image['id']] <= high and image['id'] not in crowded
    ]
    if not 0 < images <= len(chosen):
        raise ValueError(
            f'--images {images}, but {len(chosen)} images have {low} to {high} instances and '
            'no crowd'
        )
    ids = {image['id'] for image in chosen[:images]}
    annotations = [a for a in content['annotations'] if a['image_id'] in ids]
    return {**content, 'images': chosen[:images], 'annotations': annotations}


def main() -> None:
    """Write the subset."""
    args = parse_args()
    try:
        check_outputs([args.out], args.overwrite, inputs=[args.annotations])
        content = subset(load_coco(str(args.annotations)), args.images, tuple(args.instances))
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content))
    print(f'{args.out}: {len(content["images"])} images, {len(content["annotations"])} instances')


if __name__ == '__main__':
    main()
