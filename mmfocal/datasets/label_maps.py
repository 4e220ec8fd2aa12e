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
from pathlib import Path, PurePath

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
    coco = _Annotations(root / 'annotations' / f'instances_{split}.json')
    _check_names(coco)
    return coco


def _map_name(image: dict) -> str:
    return str(PurePath(image['file_name']).with_suffix('.png'))


def _check_names(coco: _Annotations) -> None:
    """Check that names stay below the output folder and that each image has its own label map."""
    owners: dict[str, dict] = {}
    for image in coco.imgs.values():
        name = image['file_name']
        path = PurePath(name if isinstance(name, str) else '')
        if not path.name or path.is_absolute() or '..' in path.parts:
            raise ValueError(
                f'{coco.path}: image id={image["id"]} has file_name={name!r}; expected a path '
                "below the image folder, without '..'"
            )
        other = owners.setdefault(_map_name(image), image)
        if other is not image:
            raise ValueError(
                f'{coco.path}: images id={other["id"]} ({other["file_name"]}) and id='
                f'{image["id"]} ({name}) would share the label map {_map_name(image)}, because '
                'mmseg pairs images and label maps by their names without suffix; rename one'
            )


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


def _check_output(folder: Path, sources: dict[str, Path], overwrite: bool) -> None:
    """Check that a folder may receive files.

    Args:
        folder: Output folder.
        sources: Image by name of the file that is made from it.
        overwrite: Whether files of these names may be replaced.

    Raises:
        FileExistsError: If the folder holds files; with ``overwrite``, if it holds other files or
            the images themselves.
    """
    present = {str(path.relative_to(folder)) for path in folder.rglob('*') if not path.is_dir()}
    if present and not overwrite:
        hint = '--overwrite (overwrite=True) replaces them'
        raise FileExistsError(f'{folder} holds {len(present)} files already; {hint}')
    foreign = sorted(present - set(sources))
    if foreign:
        raise FileExistsError(
            f'{folder} holds {len(foreign)} files with other names, the first is {foreign[0]}; '
            'remove them or choose another folder'
        )
    for name in present:
        target, source = folder / name, sources[name]
        if not target.is_symlink() and source.exists() and target.samefile(source):
            raise FileExistsError(
                f'{target} is the image {source} itself; choose another output folder'
            )


def _clear(path: Path) -> Path:
    """Make way for a file: a link is removed, not followed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path


def _write_maps(
    coco: _Annotations, folder: Path, values: dict[int, int], nothing: int, track: Track | None
) -> None:
    """Write a label map for every image, under the image's name.

    Args:
        coco: The instances.
        folder: Output folder.
        values: Label by category id.
        nothing: Label of pixels without an instance.
        track: Shows progress.
    """
    images = list(coco.imgs.values())
    for image in track(images, description=str(folder)) if track else images:
        labels = Image.fromarray(_paint(coco, image, values, nothing))
        labels.save(_clear(folder / _map_name(image)))


def _map_sources(coco: _Annotations, source: Path) -> dict[str, Path]:
    """Return the image of each label map."""
    return {_map_name(image): source / image['file_name'] for image in coco.imgs.values()}


def _check_values(coco: _Annotations, values: Iterable[int]) -> None:
    beyond = [value for value in values if not 0 <= value < NO_LABEL]
    if beyond:
        raise ValueError(
            f'{coco.path}: a category would get label {beyond[0]}; expected 0 to {NO_LABEL - 1}'
        )


def _image_files(coco: _Annotations, source: Path) -> dict[str, Path]:
    """Return the images of a split by name; all of them exist."""
    names = [str(PurePath(image['file_name'])) for image in coco.imgs.values()]
    files = {name: source / name for name in names}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f'{coco.path}: {len(missing)} of {len(files)} images are not in {source}, the first '
            f'is {missing[0]}'
        )
    return files


def _place_images(files: dict[str, Path], folder: Path, copy: bool) -> None:
    """Link or copy the images of a split."""
    for name, path in files.items():
        target = _clear(folder / name)
        if copy:
            shutil.copyfile(path, target)
        else:
            target.symlink_to(path.resolve())


def _check_classes(path: Path, text: str, overwrite: bool) -> None:
    """Check that a list of classes of an earlier call, for another split, is the same."""
    if path.exists() and not overwrite and path.read_text() != text:
        raise FileExistsError(
            f'{path} has other classes; --overwrite (overwrite=True) replaces them'
        )


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
        FileExistsError: If files exist already; with ``overwrite``, if they are foreign ones or
            the images themselves.
        ValueError: If the splits differ in their categories, these do not fit into 8 bits, an
            image's name leaves its folder or differs from another one only in the suffix, or an
            instance has no category or mask.
    """
    root, out = Path(coco_root), Path(out)
    sets = {split: _read(root, split) for split in splits}
    names, *others = ([c['name'] for c in coco.dataset['categories']] for coco in sets.values())
    if any(other != names for other in others):
        raise ValueError(f'{root}/annotations: categories of {", ".join(splits)} differ')
    classes = '\n'.join(names) + '\n'
    _check_classes(out / 'classes.txt', classes, overwrite)
    plans = []
    for split, coco in sets.items():
        values = {c['id']: index for index, c in enumerate(coco.dataset['categories'], start=1)}
        _check_values(coco, values.values())
        files = _image_files(coco, root / split)
        images, maps = (out / kind / FOLDERS[split] for kind in ('images', 'annotations'))
        _check_output(images, files, overwrite)
        _check_output(maps, _map_sources(coco, root / split), overwrite)
        plans.append((coco, values, files, images, maps))
    for coco, values, files, images, maps in plans:
        _place_images(files, images, copy)
        _write_maps(coco, maps, values, 0, track)
    (out / 'classes.txt').write_text(classes)
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
        FileExistsError: If files exist already; with ``overwrite``, if they are foreign ones or
            the images themselves.
        ValueError: If category ids do not fit into 8 bits, an image's name leaves its folder or
            differs from another one only in the suffix, or an instance has no category or mask.
    """
    root = Path(coco_root)
    sets = {split: _read(root, split) for split in splits}
    for split, coco in sets.items():
        _check_values(coco, [category - 1 for category in coco.cats])
        _check_output(Path(out, split), _map_sources(coco, root / split), overwrite)
    for split, coco in sets.items():
        values = {category: category - 1 for category in coco.cats}
        _write_maps(coco, Path(out, split), values, NO_LABEL, track)
    return sum(len(coco.imgs) for coco in sets.values())
