# SPDX-License-Identifier: Apache-2.0
"""Label maps from COCO instances, for semantic segmentation and as stuff maps.

A pixel gets the category of the smallest instance that covers it, because COCO has no depth order
and small instances are usually in front of or parts of large ones. A crowd counts as one instance.
Pixels without an instance have no label.
"""

import contextlib
import io
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

FOLDERS = dict(train2017='training', val2017='validation')  # COCO's and ADE20K's names of splits
NO_LABEL = 255  # ignored by the hosts' losses and metrics
Track = Callable[..., Iterable]


class _Annotations(COCO):
    """COCO's index of a file, without its output; errors name the file."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f'{path} does not exist; expected COCO instances')
        self.path = path
        with contextlib.redirect_stdout(io.StringIO()):
            super().__init__(path)


def _read(root: Path, split: str) -> _Annotations:
    return _Annotations(root / 'annotations' / f'instances_{split}.json')


def _mask(coco: _Annotations, annotation: dict, shape: tuple[int, int]) -> np.ndarray:
    """Decode a mask: (H, W) bool."""
    regions = annotation.get('segmentation')
    is_rle = isinstance(regions, dict)
    if not is_rle and not (regions and all(len(polygon) >= 6 for polygon in regions)):
        raise ValueError(
            f'{coco.path}: annotation id={annotation["id"]} has segmentation={regions!r}; '
            'expected RLE, or polygons of at least 3 points'
        )
    mask = coco.annToMask(annotation).astype(bool)
    if mask.shape != shape:
        raise ValueError(
            f'{coco.path}: annotation id={annotation["id"]} has a mask of {mask.shape}, its image '
            f'is {shape} (height, width)'
        )
    return mask


def _paint(coco: _Annotations, image: dict, values: dict[int, int], nothing: int) -> np.ndarray:
    """Paint the instances of an image, large ones first: (H, W) uint8."""
    shape = image['height'], image['width']
    labels = np.full(shape, nothing, np.uint8)
    regions = []
    for annotation in coco.imgToAnns[image['id']]:
        if annotation['category_id'] not in values:
            raise ValueError(
                f'{coco.path}: annotation id={annotation["id"]} has unknown category_id='
                f'{annotation["category_id"]}'
            )
        regions.append((_mask(coco, annotation, shape), values[annotation['category_id']]))
    for mask, value in sorted(regions, key=lambda region: -region[0].sum()):
        labels[mask] = value
    return labels


def _prepare(folder: Path, names: Iterable[str], overwrite: bool) -> None:
    """Create a folder for files of these names and check that it has no other files."""
    present = {str(path.relative_to(folder)) for path in folder.rglob('*') if not path.is_dir()}
    if present and not overwrite:
        hint = '--overwrite (overwrite=True) replaces them'
        raise FileExistsError(f'{folder} holds {len(present)} files already; {hint}')
    foreign = sorted(present - set(names))
    if foreign:
        raise FileExistsError(
            f'{folder} holds {len(foreign)} files with other names, the first is {foreign[0]}; '
            'remove them or choose another folder'
        )
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)


def _write_maps(
    coco: _Annotations,
    folder: Path,
    values: dict[int, int],
    nothing: int,
    overwrite: bool,
    track: Track | None,
) -> None:
    """Write a label map for every image, under the image's name.

    Args:
        coco: The instances.
        folder: Output folder.
        values: Label by category id.
        nothing: Label of pixels without an instance.
        overwrite: Replace files of the same names.
        track: Shows progress.
    """
    beyond = [value for value in values.values() if not 0 <= value < NO_LABEL]
    if beyond:
        raise ValueError(
            f'{coco.path}: a category would get label {beyond[0]}; expected 0 to {NO_LABEL - 1}'
        )
    names = {str(Path(i['file_name']).with_suffix('.png')): i for i in coco.imgs.values()}
    _prepare(folder, names, overwrite)
    items = track(list(names.items()), description=str(folder)) if track else names.items()
    for name, image in items:
        Image.fromarray(_paint(coco, image, values, nothing)).save(folder / name)


def _place_images(
    coco: _Annotations, source: Path, folder: Path, copy: bool, overwrite: bool
) -> None:
    """Link or copy the images of a split."""
    names = [image['file_name'] for image in coco.imgs.values()]
    missing = [name for name in names if not (source / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f'{coco.path}: {len(missing)} of {len(names)} images are not in {source}, the first '
            f'is {missing[0]}'
        )
    _prepare(folder, names, overwrite)
    for name in names:
        (folder / name).unlink(missing_ok=True)
        if copy:
            shutil.copyfile(source / name, folder / name)
        else:
            (folder / name).symlink_to((source / name).resolve())


def write_label_maps(
    coco_root: str | Path,
    out: str | Path,
    splits: Sequence[str] = tuple(FOLDERS),
    copy: bool = False,
    overwrite: bool = False,
    track: Track | None = None,
) -> int:
    """Write instances as label maps for mmseg's ``ADE20KDataset``.

    The label of a category is its position in the annotation file, counted from 1; 0 means no
    label. With ``reduce_zero_label=True``, labels equal mmdet's class indices. ``classes.txt`` has
    one name per line, as ``metainfo=dict(classes='.../classes.txt')`` expects.

    Args:
        coco_root: Folder with ``annotations/instances_{split}.json`` and ``{split}/``.
        out: Output folder of ``images/{training,validation}``, ``annotations/...`` and
            ``classes.txt``.
        splits: ``train2017``, ``val2017`` or both.
        copy: Copy the images instead of linking them.
        overwrite: Replace files of the same names.
        track: Called with a sequence and ``description=``; yields the items and shows progress.

    Returns:
        Number of label maps.

    Raises:
        FileNotFoundError: If an annotation file or an image is missing.
        FileExistsError: If a folder has files or, with ``overwrite``, files with other names.
        ValueError: If the categories of the splits differ or do not fit into 8 bits, or if an
            instance has no category or mask.
    """
    root, out = Path(coco_root), Path(out)
    sets = {split: _read(root, split) for split in splits}
    names, *others = ([c['name'] for c in coco.dataset['categories']] for coco in sets.values())
    if any(other != names for other in others):
        raise ValueError(f'{root}/annotations: categories of {", ".join(splits)} differ')
    for split, coco in sets.items():
        values = {c['id']: index for index, c in enumerate(coco.dataset['categories'], start=1)}
        images, maps = (out / kind / FOLDERS[split] for kind in ('images', 'annotations'))
        _place_images(coco, root / split, images, copy, overwrite)
        _write_maps(coco, maps, values, 0, overwrite, track)
    (out / 'classes.txt').write_text('\n'.join(names) + '\n')
    return sum(len(coco.imgs) for coco in sets.values())


def write_stuff_maps(
    coco_root: str | Path,
    out: str | Path,
    splits: Sequence[str] = tuple(FOLDERS),
    overwrite: bool = False,
    track: Track | None = None,
) -> int:
    """Write instances as stuff maps for HTC's semantic branch.

    As in COCO-Stuff, the label of a category is its id minus 1 (COCO's things have 0 to 89), and
    255 means no label. Instances do not include stuff (91 to 181), so those pixels are ignored.

    Args:
        coco_root: Folder with ``annotations/instances_{split}.json``.
        out: Output folder of ``{split}/*.png``; HTC's configs expect ``stuffthingmaps``.
        splits: ``train2017``, ``val2017`` or both.
        overwrite: Replace files of the same names.
        track: Called with a sequence and ``description=``; yields the items and shows progress.

    Returns:
        Number of label maps.

    Raises:
        FileNotFoundError: If an annotation file is missing.
        FileExistsError: If a folder has files or, with ``overwrite``, files with other names.
        ValueError: If category ids do not fit into 8 bits, or an instance has no category or mask.
    """
    sets = {split: _read(Path(coco_root), split) for split in splits}
    for split, coco in sets.items():
        values = {category: category - 1 for category in coco.cats}
        _write_maps(coco, Path(out, split), values, NO_LABEL, overwrite, track)
    return sum(len(coco.imgs) for coco in sets.values())
