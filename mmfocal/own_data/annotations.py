# SPDX-License-Identifier: Apache-2.0
"""Properties of annotations that a config needs: classes, numbers of images, suffixes."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmfocal.image_files import IMAGES, is_hidden


@dataclass(frozen=True)
class Split:
    """Training or validation data.

    Attributes:
        labels: COCO file, folder of label maps, or folder of class folders.
        images: Folder of the images; not used for class folders.
        count: Number of images; in a COCO file for training, of annotated images.
        listing: File with a line ``PATH INDEX`` per image; for class folders only, see
            ``list_class_folders``.
    """

    labels: str
    images: str
    count: int
    listing: str = ''


@dataclass(frozen=True)
class OwnData:
    """A custom data set.

    Attributes:
        classes: Names in the order of their indices.
        train: Training data.
        val: Validation data.
        has_masks: Whether every instance has a mask (COCO files only).
        image_suffix: Suffix of all images (label maps only).
        label_suffix: Suffix of all label maps.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split
    has_masks: bool = False
    image_suffix: str = ''
    label_suffix: str = ''


def read_coco(train: str, val: str, images: str, val_images: str | None = None) -> OwnData:
    """Read two COCO instances files.

    Args:
        train: Training file.
        val: Validation file with the same categories.
        images: Folder that file names are relative to.
        val_images: Folder of ``val`` if it differs.

    Returns:
        Classes in the order of the file, as mmdet numbers them.

    Raises:
        ValueError: If a file contains no instances, or if their categories differ.
    """
    contents = [load_coco(path) for path in (train, val)]
    names, val_names = (
        tuple(category['name'] for category in content['categories']) for content in contents
    )
    if names != val_names:
        raise ValueError(
            f'the categories of {train} and {val} differ: {list(names)} and {list(val_names)}'
        )
    annotated = {annotation['image_id'] for annotation in contents[0]['annotations']}
    return OwnData(
        classes=names,
        train=Split(train, images, len(annotated)),
        val=Split(val, val_images or images, len(contents[1]['images'])),
        has_masks=all(a.get('segmentation') for c in contents for a in c['annotations']),
    )


def load_coco(path: str) -> dict:
    """Read a COCO instances file.

    Args:
        path: JSON file.

    Returns:
        Its content.

    Raises:
        ValueError: If images, categories or annotations are missing.
    """
    content = json.loads(Path(path).read_text(encoding='utf-8'))
    for key in ('images', 'categories', 'annotations'):
        if not isinstance(content, dict) or not content.get(key):
            raise ValueError(f'{path} has no {key!r}; expected a COCO instances file')
    return content


def read_label_maps(
    train: str, val: str, images: str, val_images: str, classes: Sequence[str]
) -> OwnData:
    """Read folders of label maps: images whose pixel values are class indices.

    Args:
        train: Training folder.
        val: Validation folder.
        images: Images of ``train``, named like the label maps.
        val_images: Images of ``val``.
        classes: Names in the order of the values.

    Returns:
        Classes and the suffixes of the files.

    Raises:
        FileNotFoundError: If a folder holds no images.
        ValueError: If names are missing, or if a folder has files of several suffixes.
    """
    if not classes:
        raise ValueError('label maps hold numbers only; pass the class names with --classes')
    suffixes = [_suffix(folder) for folder in (train, val, images, val_images)]
    for first, second in ((0, 1), (2, 3)):
        if suffixes[first] != suffixes[second]:
            raise ValueError(
                f'training and validation files differ in suffix: {suffixes[first]} and '
                f'{suffixes[second]}'
            )
    return OwnData(
        classes=tuple(classes),
        train=Split(train, images, len(_images(train))),
        val=Split(val, val_images, len(_images(val))),
        image_suffix=suffixes[2],
        label_suffix=suffixes[0],
    )


def read_class_folders(train: str, val: str, classes: Sequence[str] = ()) -> OwnData:
    """Read folders with one folder of images per class; hidden folders and files are skipped.

    Args:
        train: Training folder.
        val: Validation folder with the same classes.
        classes: Expected names; by default those of ``train``.

    Returns:
        Classes in alphabetical order.

    Raises:
        ValueError: If there are no class folders, or if the folders' names differ.
    """
    found = [_class_folders(folder) for folder in (train, val)]
    names = tuple(sorted(classes)) or found[0]
    if not names:
        raise ValueError(f'{train} holds no folders; expected one per class')
    for folder, other in zip((train, val), found):
        if other != names:
            raise ValueError(
                f'{folder} holds folders of the classes {list(other)}; expected {list(names)}, '
                'an empty folder for a class without images'
            )
    counts = [sum(len(_images(f'{folder}/{name}')) for name in names) for folder in (train, val)]
    return OwnData(names, Split(train, train, counts[0]), Split(val, val, counts[1]))


def has_hidden_folders(folder: str) -> bool:
    """Return whether mmpretrain would take a hidden folder, such as Jupyter's, for a class."""
    return any(path.is_dir() and path.name.startswith('.') for path in Path(folder).rglob('.*'))


def list_class_folders(folder: str) -> str:
    """Return the images of class folders as mmpretrain's annotation file lists them.

    Args:
        folder: Folder with one folder of images per class.

    Returns:
        A line ``PATH INDEX`` per image, in the order of the paths.
    """
    lines = []
    for index, name in enumerate(_class_folders(folder)):
        for path in sorted(_images(f'{folder}/{name}')):
            lines.append(f'{path.relative_to(folder).as_posix()} {index}\n')
    return ''.join(lines)


def _class_folders(folder: str) -> tuple[str, ...]:
    entries = Path(folder).iterdir()
    return tuple(
        sorted(path.name for path in entries if path.is_dir() and not is_hidden(Path(path.name)))
    )


def _images(folder: str) -> list[Path]:
    """Return the images in a folder and its subfolders; names that start with a dot are hidden."""
    return [
        path
        for path in Path(folder).rglob('*')
        if path.suffix.lower() in IMAGES and not is_hidden(path.relative_to(folder))
    ]


def _suffix(folder: str) -> str:
    found = Counter(path.suffix for path in _images(folder))
    if not found:
        raise FileNotFoundError(f'{folder} holds no images')
    if len(found) > 1:
        raise ValueError(f'{folder} holds files of several suffixes: {dict(found)}; expected one')
    return next(iter(found))
