# SPDX-License-Identifier: Apache-2.0
"""Checks of images, label maps, class folders and lists of images."""

import inspect
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.fileio import list_from_file
from PIL import Image

from mmfocal.image_files import IMAGES

from ..findings import Findings, first_few
from ..machine import dicts_in, kind_of

SAMPLE = 50  # number of files that are opened, evenly spread, so that startup stays fast
_DECODED_PIXELS = 2_000_000  # of larger images only the header is checked
_EXIF_ORIENTATION = 0x0112
_JPEG_START, _JPEG_END = b'\xff\xd8', b'\xff\xd9'
_TAIL = 64 * 1024  # bytes; cameras append data to JPEG files
_SYSTEM_FOLDERS = ('__MACOSX', '@eaDir', 'lost+found', '$RECYCLE.BIN')
IGNORED = 255  # ignored by the hosts' losses and metrics


# ---- files -------------------------------------------------------------------------------------


def is_remote(path: str) -> bool:
    """Return whether a path is an address such as ``s3://...``, which is not checked.

    Args:
        path: Path or address.
    """
    return '://' in path


def has_file(path: str, hint: str, key: str, findings: Findings) -> bool:
    """Check that a file exists, unless it is remote.

    Args:
        path: The file.
        hint: How to get it.
        key: Key of the file in the config.
        findings: Collects the error.
    """
    found = is_remote(path) or os.path.isfile(path)
    if not found:
        findings.error(f'{key}: expected a file at {path}\n{hint}')
    return found


def has_files(path: str, hint: str, key: str, findings: Findings) -> bool:
    """Check that a folder exists and contains files, also in subfolders, unless it is remote.

    Args:
        path: The folder.
        hint: How to get it.
        key: Key of the file in the config.
        findings: Collects the error.
    """
    found = is_remote(path) or any(files for _, files in walk(path, []))
    if not found:
        findings.error(f'{key}: expected a folder with files at {path}\n{hint}')
    return found


def walk(folder: str, loops: list[str]) -> Iterator[tuple[str, list[str]]]:
    """List a folder and those below it, also behind links, which the hosts follow.

    Args:
        folder: The folder.
        loops: Links to a folder above them are added here. They are not followed.

    Yields:
        Path of each folder and names of the files in it.
    """
    above: dict[str, tuple] = {}
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        identity = (status.st_dev, status.st_ino)
        chain = above.get(os.path.dirname(place), ())
        if identity in chain:
            loops.append(place)
            folders.clear()
            continue
        above[place.rstrip('/')] = (*chain, identity)
        yield place, names


def _report_loops(key: str, loops: Sequence[str], findings: Findings) -> None:
    if loops:
        findings.error(
            f'{key}: {loops[0]} links to a folder above it, so that reading would not end; '
            'expected folders without such links'
        )


def missing_files(paths: Iterable[str]) -> Iterator[str]:
    """Yield the paths that do not exist.

    Each folder is listed once, which is faster than a lookup per file on network disks.

    Args:
        paths: Files to look for.
    """
    listed: dict[str, set[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition(os.sep)  # faster than os.path.split
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in listed[folder]:
            yield path


def sample(items: Sequence[Any], size: int = SAMPLE) -> list[Any]:
    """Choose up to ``size`` items, evenly spread.

    Args:
        items: All items.
        size: Maximum number.
    """
    if not items:
        return []
    indices = np.linspace(0, len(items) - 1, min(size, len(items))).astype(int)
    return [items[index] for index in indices]


def are_present(key: str, paths: Sequence[str], what: str, findings: Findings) -> bool:
    """Check that files exist.

    Args:
        key: Key of their folder in the config.
        paths: The files.
        what: Description of the files.
        findings: Collects the error, which names the first missing file.
    """
    missing = list(missing_files(paths))
    if missing:
        findings.error(
            f'{key}: {len(missing)} of {len(paths)} {what} are missing, the first is {missing[0]}'
        )
    return not missing


def read_list(key: str, path: str, expected: str, findings: Findings) -> list[str] | None:
    """Read a text file as the hosts do.

    Args:
        key: Key of the file in the config.
        path: The file.
        expected: What its lines hold.
        findings: Collects the error.

    Returns:
        Its lines; None if it is empty, has blank lines or is not UTF-8.
    """
    problem = None
    try:
        lines = list_from_file(path)
    except UnicodeDecodeError as error:
        lines, problem = [], f'is not UTF-8: {error}'
    else:
        blank = [number for number, line in enumerate(lines, start=1) if not line.strip()]
        if not lines:
            problem = 'is empty'
        elif blank:
            problem = f'has {len(blank)} blank lines, the first is line {blank[0]}'
        elif lines[0].startswith('\ufeff'):
            problem = 'starts with a byte order mark'
    if problem:
        findings.error(f'{key}: {path} {problem}; expected lines of {expected}')
        return None
    return lines


# ---- images ------------------------------------------------------------------------------------


def picture_size(path: str, loader: dict | None = None) -> tuple[int, int] | None:
    """Return the size at which the hosts load an image; its EXIF tag may rotate it.

    Args:
        path: Image in any format and mode.
        loader: Config of the transform that loads it; None for the hosts' default.

    Returns:
        Width and height; None if the image is readable but its size is unknown.

    Raises:
        OSError: If the image cannot be read or is truncated.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # damaged EXIF tags, huge images
        try:
            with Image.open(path) as image:
                size, kind = image.size, image.format
                tag = image.getexif().get(_EXIF_ORIENTATION, 1)
                if not _is_large(size):
                    image.load()
        except Image.DecompressionBombError:  # too large for Pillow, but the hosts may read it
            return None
        except OSError:
            if os.path.getsize(path) and _opencv_reads(path):
                return None
            raise
        except (SyntaxError, ValueError, EOFError) as error:  # damaged PNG chunks
            raise OSError(str(error)) from error
    loader = loader or {}
    color, backend = loader.get('color_type', 'color'), loader.get('imdecode_backend', 'cv2')
    return size[::-1] if tag in (5, 6, 7, 8) and _rotates(kind, color, backend) else size


def _is_large(size: tuple[int, int]) -> bool:
    return size[0] * size[1] > _DECODED_PIXELS


@cache
def _rotates(kind: str | None, color: str, backend: str) -> bool:
    """Return whether a decoder turns images of a format by their EXIF tag.

    That depends on the version of OpenCV, so that a small image is decoded.
    """
    exif, file = Image.Exif(), BytesIO()
    exif[_EXIF_ORIENTATION] = 6
    try:
        Image.new('RGB', (32, 16)).save(file, kind, exif=exif)
        image = _decode(file.getvalue(), backend, color)
    except (OSError, KeyError, ValueError):  # a format that Pillow does not write
        return False
    return image.shape[1::-1] != Image.open(file).size


def _opencv_reads(path: str) -> bool:
    """Return whether OpenCV reads a format that Pillow does not support.

    Other formats are left to Pillow, because OpenCV pads truncated images.
    """
    import cv2

    try:
        with Image.open(path):
            return False  # supported format, but damaged
    except OSError:
        return cv2.imread(path) is not None


def check_pictures(
    key: str, paths: Sequence[str], pipeline: Any, findings: Findings
) -> dict[str, tuple[int, int]]:
    """Open a sample of images; decode them as the pipeline does.

    Args:
        key: Key of their folder in the config.
        paths: All of them.
        pipeline: The data set's transforms.
        findings: Collects an error if some cannot be read.

    Returns:
        Width and height of the images of the sample as they are loaded, where these are known.
    """
    loaders = [step for step in dicts_in(pipeline) if kind_of(step) == 'LoadImageFromFile']
    sizes, broken, cut = {}, [], []
    for path in sample(paths):
        try:
            size = _loaded_size(path, loaders[0] if loaders else None)
            if size:
                sizes[path] = size
                if _is_large(size) and _is_cut(path):
                    cut.append(path)
        except OSError as error:
            broken.append(f'{path} ({error})')
    if broken:
        findings.error(
            f'{key}: {len(broken)} of a sample of {len(sample(paths))} images cannot be read: '
            f'{first_few(broken)}'
        )
    if cut:
        findings.warn(
            f'{key}: {len(cut)} of a sample of {len(sample(paths))} images seem truncated, they '
            f'lack the end of a JPEG file: {first_few(cut)}'
        )
    return sizes


def _loaded_size(path: str, loader: dict | None) -> tuple[int, int] | None:
    """Return the size of an image, which a loader must decode; of a large one, read the start.

    Raises:
        OSError: If the image is damaged, or if mmcv does not support it.
    """
    size = picture_size(path, loader)
    if loader is None:
        return size
    if size and not _is_large(size):
        height, width = decode(path, loader, 'cv2', 'color').shape[:2]
        return width, height
    import cv2

    if loader.get('imdecode_backend', 'cv2') == 'cv2' and not cv2.haveImageReader(path):
        raise OSError('OpenCV does not support its format')
    return size


def _is_cut(path: str) -> bool:
    """Return whether a JPEG file lacks its end, which decoders pad with gray."""
    length = os.path.getsize(path)
    with open(path, 'rb') as file:
        if file.read(2) != _JPEG_START:
            return False
        file.seek(max(length - _TAIL, length // 2))  # the first half may hold a thumbnail
        return _JPEG_END not in file.read()


def decode(path: str, loader: dict, backend: str, color: str) -> np.ndarray:
    """Decode an image as a transform of the hosts does.

    Args:
        path: The image.
        loader: Config of the transform.
        backend: Its default decoder.
        color: Its default channels.

    Returns:
        (H, W) or (H, W, C).

    Raises:
        OSError: If the image is not supported.
    """
    backend, color = loader.get('imdecode_backend', backend), loader.get('color_type', color)
    return _decode(Path(path).read_bytes(), backend, color)


def _decode(content: bytes, backend: str, flag: str) -> np.ndarray:
    import mmcv

    try:
        image = mmcv.imfrombytes(content, flag=flag, backend=backend)
    except Exception as error:  # each decoder has its own
        raise OSError(f'imdecode_backend={backend!r}: {error}') from error
    if image is None:
        raise OSError(f'imdecode_backend={backend!r} does not support it')
    return image


# ---- label maps --------------------------------------------------------------------------------


def check_label_maps(
    key: str, dataset: BaseDataset, pipeline: Any, hint: str, findings: Findings
) -> int | None:
    """Check the label maps of a segmentation data set; a sample of up to 50 is opened.

    Args:
        key: Key of the data set in the config.
        dataset: A ``BaseSegDataset`` of mmseg before it reads files.
        pipeline: Its transforms; labels that they do not load are not checked.
        hint: How to get the data.
        findings: Collects the errors.

    Returns:
        Number of images, None if it is unknown.
    """
    loaders = [step for step in dicts_in(pipeline) if kind_of(step) == 'LoadAnnotations']
    folders: list[tuple[str, list[str]]] = []  # stays empty if a list selects the images
    if os.path.isfile(dataset.ann_file):
        expected = 'names of images without suffix'
        if read_list(f'{key}.ann_file', dataset.ann_file, expected, findings) is None:
            return None
    else:
        loops: list[str] = []
        folders += walk(dataset.data_prefix['img_path'], loops)
        if loops:
            _report_loops(f'{key}.data_prefix.img_path', loops, findings)
            return None
    dataset.full_init()
    if len(dataset) == 0:
        findings.error(
            f'{key}.data_prefix.img_path: no file in {dataset.data_prefix["img_path"]} ends in '
            f'{dataset.img_suffix!r} (img_suffix)\n{hint}'
        )
        return None
    entries = [dataset.get_data_info(index) for index in range(len(dataset))]
    images = [entry['img_path'] for entry in entries]
    image_key = f'{key}.data_prefix.img_path'
    if not are_present(image_key, images, 'images', findings):
        return len(dataset)
    sizes = check_pictures(image_key, images, pipeline, findings)
    if not loaders:
        return len(dataset)
    _check_agreement(key, dataset.reduce_zero_label, loaders, findings)
    label_key = f'{key}.data_prefix.seg_map_path'
    maps = [entry['seg_map_path'] for entry in entries]
    _check_suffixes(image_key, dataset, folders, findings)
    if are_present(label_key, maps, 'label maps', findings):
        _check_sizes(label_key, sizes, dict(zip(images, maps, strict=True)), findings)
        _check_labels(label_key, dataset, maps, loaders[0], findings)
    return len(dataset)


def check_values(
    key: str,
    paths: Sequence[str],
    highest: int,
    ignored: set[int],
    note: str,
    decoder: tuple[dict, str],
    findings: Findings,
) -> list[set[int]]:
    """Open a sample of label maps as the pipeline does and check their values.

    Args:
        key: Key of their folder in the config.
        paths: The files.
        highest: Highest label.
        ignored: Higher values that mean no label.
        note: Source of the highest label.
        decoder: Config of the transform that loads them and its default decoder.
        findings: Collects an error if a file is not a label map or has another value.

    Returns:
        The values in each map of the sample; empty if there was an error.
    """
    found = []
    for path in sample(paths):
        try:
            picture_size(path)  # OpenCV pads truncated files
            labels = decode(path, *decoder, 'unchanged')
        except OSError as error:
            findings.error(f'{key}: {path} cannot be read: {error}')
            return []
        if labels.ndim != 2:
            findings.error(
                f'{key}: {path} has {labels.shape[2]} channels; expected one label per pixel'
            )
            return []
        values = np.unique(labels)
        found.append(set(values.tolist()))
        fractions = values[values != np.round(values)] if values.dtype.kind == 'f' else ()
        if len(fractions):
            findings.error(f'{key}: {path} has label {fractions[0]}; expected integers')
            return []
        beyond = sorted(v for v in found[-1] - ignored if not 0 <= v <= highest)
        if beyond:
            findings.error(
                f'{key}: {path} has label {beyond[0]}; expected 0 to {highest}, or '
                f'{" or ".join(map(str, sorted(ignored)))} for none ({note})'
            )
            return []
    return found


def _check_agreement(key: str, reduces: bool, loaders: Sequence[dict], findings: Findings) -> None:
    """Check ``reduce_zero_label`` of the loaders, as mmseg does at the first image."""
    for loader in loaders:
        own = loader.get('reduce_zero_label')
        if own is not None and own != reduces:
            findings.error(
                f'{key}.pipeline: LoadAnnotations has reduce_zero_label={own}, but {key} has '
                f'reduce_zero_label={reduces}'
            )


def _check_suffixes(
    key: str, dataset: BaseDataset, folders: list[tuple[str, list[str]]], findings: Findings
) -> None:
    """Report annotated images that are unused because of another suffix than ``img_suffix``."""
    folder, maps = dataset.data_prefix['img_path'], dataset.data_prefix['seg_map_path']
    used = dataset.img_suffix
    others = []
    for place, names in folders:
        below = os.path.relpath(place, folder)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGES and not name.endswith(used):
                others.append(os.path.join(maps, below, stem + dataset.seg_map_suffix))
    # labels in the image folder are not images
    others = [path for path in others if os.path.realpath(maps) != os.path.realpath(folder)]
    annotated = len(others) - sum(1 for _ in missing_files(others))
    if annotated:
        findings.error(
            f'{key}: {annotated} images in {folder} have label maps, but do not end in {used!r} '
            f'(img_suffix), so only {len(dataset)} images would be used; expected one suffix for '
            'all'
        )


def _check_sizes(
    key: str, sizes: dict[str, tuple[int, int]], maps: dict[str, str], findings: Findings
) -> None:
    for image, image_size in sizes.items():
        labels = maps[image]
        try:
            label_size = Image.open(labels).size
        except (OSError, SyntaxError):  # reported by another check
            continue
        if image_size != label_size:
            findings.error(
                f'{key}: {labels} has {_by(label_size)} pixels, but its image {image} has '
                f'{_by(image_size)}; expected the same size'
            )
            return


def _by(size: tuple[int, int]) -> str:
    return f'{size[0]} x {size[1]}'


def _check_labels(
    key: str, dataset: BaseDataset, paths: Sequence[str], loader: dict, findings: Findings
) -> None:
    reduces = dataset.reduce_zero_label
    # with a label_map, the classes are a subset, but the files have the labels of all classes
    names = type(dataset).METAINFO if dataset.label_map else dataset.metainfo
    classes = names['classes']
    count = len(classes)
    zero = 'no class' if reduces else 'the first class'
    values = check_values(
        key,
        paths,
        highest=count if reduces else count - 1,
        ignored={IGNORED, dataset.ignore_index},
        note=f'{count} classes, reduce_zero_label={reduces}: 0 is {zero}',
        decoder=(loader, 'pillow'),
        findings=findings,
    )
    if not values:
        return
    found = set().union(*values)
    default = inspect.signature(type(dataset)).parameters.get('reduce_zero_label')
    if default and default.default:
        _check_reduction(key, dataset, found, count, paths[0], findings)
    _check_occurrence(key, classes, reduces, values, findings)


def _check_reduction(
    key: str, dataset: BaseDataset, found: set[int], count: int, path: str, findings: Findings
) -> None:
    """Check by the values whether labels that start at 1 are reduced already."""
    counts_from_1 = f'{type(dataset).__name__} counts classes from 1'
    labels = f'the labels in {path} and others'
    if not dataset.reduce_zero_label and IGNORED not in found:
        findings.error(
            f'{key}: reduce_zero_label=False, but {counts_from_1}, and {labels} are not reduced: '
            f'{IGNORED} never occurs'
        )
    if dataset.reduce_zero_label and IGNORED in found and count not in found:
        findings.error(
            f'{key}: reduce_zero_label=True, and {counts_from_1}, but {labels} seem reduced '
            f'already: {IGNORED} occurs, {count} does not. Set reduce_zero_label=False in the '
            'data set and in LoadAnnotations'
        )


def _check_occurrence(
    key: str,
    classes: Sequence[str],
    reduces: bool,
    values: list[set[int]],
    findings: Findings,
) -> None:
    """Report classes without pixels; a single remaining class is an error."""
    first = int(reduces)
    absent = [
        f'{name!r} ({label})'
        for label, name in enumerate(classes, start=first)
        if not any(label in each for each in values)
    ]
    if not absent:
        return
    ignored = sum(IGNORED in each for each in values)
    few = len(absent) > len(classes) - 2 and len(classes) > 1 and len(values) > 1
    text = (
        f'{key}: {len(absent)} of {len(classes)} classes occur in none of {len(values)} label '
        f'maps{" that were opened" if len(values) == SAMPLE else ""}: {first_few(absent, 5)}; '
        f'{IGNORED}, which is ignored, occurs in {ignored or "none"}'
    )
    if few:
        findings.error(f'{text}. Expected at least two classes')
    elif len(classes) <= 2 * SAMPLE:  # many classes are rare, as in ADE20K
        findings.warn(text)


# ---- class folders -----------------------------------------------------------------------------


def check_class_folders(
    key: str, dataset: BaseDataset, pipeline: Any, findings: Findings
) -> dict[str, int] | None:
    """Check class folders of mmpretrain's ``CustomDataset``.

    Args:
        key: Key of the data set in the config.
        dataset: ``CustomDataset`` or a subclass, before it reads files.
        pipeline: Its transforms.
        findings: Collects the errors.

    Returns:
        Number of images by class, in the order of labels; None if folders define no classes.
    """
    root = dataset.img_prefix
    if dataset.ann_file or not dataset.with_label or not os.path.isdir(root):
        return None
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    key = f'{key}.data_prefix'
    if not folders:
        findings.error(f'{key}: expected a folder of images per class in {root}, found none')
        return None
    hidden = [name for name in folders if name.startswith('.') or name in _SYSTEM_FOLDERS]
    if hidden:
        findings.error(
            f'{key}: {root} has the folders {first_few(hidden)}, which would become classes; '
            'remove them'
        )
    folders = [name for name in folders if name not in hidden]
    loops: list[str] = []
    unused: list[str] = []
    pictures = {}
    for name in folders:
        pictures[name] = _pictures(os.path.join(root, name), dataset, loops, unused)
        if loops:
            _report_loops(key, loops, findings)
            return None
    if unused:
        findings.warn(
            f'{key}: {len(unused)} images in {root} are left out, because their suffixes are not '
            f'among the extensions of the data set ({" ".join(sorted(dataset.extensions))}): '
            f'{first_few(unused)}'
        )
    if len(folders) == 1:
        findings.warn(f'{key}: {root} has a single class folder, {folders[0]}')
    empty = [name for name, paths in pictures.items() if not paths]
    if empty:
        findings.warn(
            f'{key}: {len(empty)} of {len(folders)} class folders in {root} hold no image '
            f'({" ".join(sorted(dataset.extensions))}): {first_few(empty)}'
        )
    if len(empty) == len(folders):
        findings.error(f'{key}: no class folder in {root} holds an image')
    check_pictures(
        key, [path for paths in pictures.values() for path in paths], pipeline, findings
    )
    _check_names(key, root, dataset, folders, findings)
    return {name: len(paths) for name, paths in pictures.items()}


def _pictures(folder: str, dataset: BaseDataset, loops: list[str], unused: list[str]) -> list[str]:
    """List the images of a class; those of other suffixes are added to ``unused``."""
    found = []
    for place, names in sorted(walk(folder, loops)):
        for name in sorted(names):
            if name.startswith('.'):  # mmpretrain skips hidden files
                continue
            if dataset.is_valid_file(name):
                found.append(f'{place}/{name}')
            elif name.lower().endswith(IMAGES):
                unused.append(f'{place}/{name}')
    return found


def _check_names(
    key: str, root: str, dataset: BaseDataset, folders: list[str], findings: Findings
) -> None:
    """Compare class folders with the config's class names, whose order defines the labels."""
    classes = dataset.CLASSES
    if classes is None:
        return
    if len(classes) != len(folders):
        findings.error(
            f'{key}: {root} has {len(folders)} class folders ({first_few(folders)}), but '
            f'{type(dataset).__name__} has {len(classes)} class names (metainfo.classes)'
        )
    elif set(classes) == set(folders) and list(classes) != folders:
        findings.error(
            f'{key}: metainfo.classes has the names of the folders in {root} in another order; '
            f'expected them sorted: {first_few(folders, 5)}'
        )


# ---- lists of images ---------------------------------------------------------------------------


def check_image_list(
    key: str, dataset: BaseDataset, pipeline: Any, findings: Findings
) -> list[tuple[str, int]] | None:
    """Check an annotation file with lines ``path label`` in mmpretrain's format.

    Args:
        key: Key of the data set in the config.
        dataset: ``CustomDataset`` or a subclass, before it reads files.
        pipeline: Its transforms.
        findings: Collects the errors.

    Returns:
        Path and label of each image, label -1 if it has none; None if the list is unusable.
    """
    path, key = dataset.ann_file, f'{key}.ann_file'
    expected = "an image's path" + (' and a label' if dataset.with_label else '')
    lines = read_list(key, path, expected, findings)
    if lines is None:
        return None
    entries = [(line, -1) for line in lines]
    if dataset.with_label:
        parts = [line.strip().rpartition(' ') for line in lines]
        for number, (name, _, label) in enumerate(parts, start=1):
            if not name or not label.isdecimal():
                findings.error(
                    f'{key}: line {number} of {path} is {lines[number - 1]!r}; expected a path '
                    'and a label from 0 on'
                )
                return None
        entries = [(name, int(label)) for name, _, label in parts]
        _check_labeling(key, path, entries, findings)
    paths = [os.path.join(dataset.img_prefix, name) for name, _ in entries]
    if are_present(key, paths, f'images that {path} lists', findings):
        check_pictures(key, paths, pipeline, findings)
    return entries


def _check_labeling(
    key: str, path: str, entries: Sequence[tuple[str, int]], findings: Findings
) -> None:
    """Report images with two labels, and a list with a single label."""
    labels = dict(entries)
    if len(labels) < len(entries):
        name, label = next((each for each in entries if labels[each[0]] != each[1]), ('', 0))
        if name:
            findings.error(
                f'{key}: {path} lists {name} with the labels {label} and {labels[name]}; expected '
                'one label per image'
            )
    if len(set(labels.values())) == 1:
        findings.warn(f'{key}: all {len(entries)} lines of {path} have label {entries[0][1]}')
