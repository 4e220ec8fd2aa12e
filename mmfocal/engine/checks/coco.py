# SPDX-License-Identifier: Apache-2.0
"""Checks of COCO files: entries, images, categories, boxes, masks, stuff maps and evaluators."""

import codecs
import gc
import itertools
import json
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from operator import itemgetter, methodcaller
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset

from ..config_shape import metrics_of
from ..findings import Findings, first_few
from ..machine import dicts_in, kind_of
from .images import (
    IGNORED,
    are_present,
    check_pictures,
    check_values,
    has_file,
    picture_size,
    sample,
)

try:
    import msgspec
except ImportError:  # optional: it is several times faster
    msgspec = None

_REQUIRED = {  # what mmdet reads unconditionally
    'images': ('id', 'file_name', 'height', 'width'),
    'categories': ('id', 'name'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
}
_OPTIONAL = dict(annotations=('iscrowd', 'ignore'))
MASK_SAMPLE = 20_000  # crowds, and other masks, that are checked in a file for training
# pycocotools walks along outlines in fifths of a pixel: it crashes on far corners, without an
# error, and needs gigabytes for long outlines
_FAR, _LONG = 1e6, 1e7  # pixels
_HIGHEST_ID = 2**53  # pycocotools stores ids as 64 bit floats
_RELATIVE = 1.5  # highest coordinate that may be a share of the image
_COMPARED = 400  # annotations whose boxes are compared with the bounds of their polygons
_FEWEST = 5  # polygons that decide about the order
_TOLERANCE = (1.5, 0.02)  # pixels and share of the box by which they may differ

# ---- the file ----------------------------------------------------------------------------------


@dataclass
class CocoFile:
    """A COCO instances file and how it will be used.

    Args:
        key: Key of the file in the config.
        path: The file.
        findings: Collects the errors.
        masks: Whether masks are loaded or scored.
        scored: Whether COCO evaluation reads the file.
        may_lack_annotations: Whether annotations may be absent, as in test-dev files of COCO.
        pipeline: Transforms of the data set, which load its images and stuff maps.
        content: Content of the file, once it is read.
        classes: Classes of the data set that match the file, once they are known.
        reference: File and classes of the config's first data set, whose labels are binding.
    """

    key: str
    path: str
    findings: Findings
    masks: bool = False
    scored: bool = False
    may_lack_annotations: bool = False
    pipeline: Any = None
    content: dict = field(default_factory=dict)
    classes: list[str] | None = None
    reference: tuple[str, list[str]] | None = None
    _columns: dict[tuple[str, str], list] = field(default_factory=dict)

    @property
    def dataset_key(self) -> str:
        """Key of the data set in the config."""
        return self.key.removesuffix('.ann_file')

    def error(self, text: str, lines: dict[str, Any] | None = None) -> None:
        """Add an error about this file.

        Args:
            text: The error, without the key.
            lines: Config lines that solve it.
        """
        self.findings.error(f'{self.key}: {text}', lines)

    def read(self) -> bool:
        """Read the file and check that the entries read by mmdet exist.

        Returns:
            Whether further checks are possible.
        """
        try:
            self.content = _parse(Path(self.path).read_bytes())
        except (ValueError, RecursionError) as error:
            self.error(f'{self.path} is not JSON: {error}')
            return False
        if not isinstance(self.content, dict):
            self.error(f'{self.path} is a {type(self.content).__name__}; expected COCO instances')
            return False
        complete = [self._has_entries(part, names) for part, names in _REQUIRED.items()]
        if not all(complete):
            self.content = {}
        return all(complete)

    def _has_entries(self, part: str, names: Sequence[str]) -> bool:
        entries = self.content.get(part)
        if not entries and part == 'annotations' and self.may_lack_annotations:
            self.content[part] = []
            return True
        if not entries:
            self.error(f'{self.path} has no {part!r}; expected a COCO instances file')
            return False
        if not isinstance(entries, list) or set(map(type, entries)) != {dict}:
            self.error(f'{part} in {self.path} is not a list of objects')
            return False
        if part == 'annotations' and self.scored:
            names = (*names, 'iscrowd')
        lacking = [name for name in names if not self._has_column(part, name)]
        return not lacking

    def _has_column(self, part: str, name: str) -> bool:
        with suppress(KeyError):
            self.column(part, name)
            return True
        entries = self.content[part]
        lacking = [index for index, entry in enumerate(entries) if name not in entry]
        hint = ', usually 0' if name == 'iscrowd' else ''
        self.error(
            f'{len(lacking)} of {len(entries)} {part} in {self.path} have no {name!r}'
            f'{hint}, the first is {part}[{lacking[0]}]'
        )
        return False

    def column(self, part: str, name: str) -> list:
        """Return one value of every entry, found once: millions of entries need loops in C.

        Args:
            part: ``images``, ``categories`` or ``annotations``.
            name: Key of the value.

        Raises:
            KeyError: If an entry lacks it.
        """
        if (part, name) not in self._columns:
            self._columns[part, name] = list(map(itemgetter(name), self.content[part]))
        return self._columns[part, name]


def _parse(text: bytes) -> Any:
    """Parse JSON; a segmentation may stay text, see ``_mask_of``.

    NaN and infinity, which JSON lacks, are read as Python's own reader does. Only UTF-8 is read,
    as by pycocotools.
    """
    if text.startswith(codecs.BOM_UTF8):
        raise ValueError('it starts with a byte order mark; expected UTF-8 without it')
    if not text.isascii():
        text.decode()
    if msgspec is not None:
        with suppress(msgspec.MsgspecError):  # not COCO instances, or NaN
            return _decoder().decode(text)
    return json.loads(text.decode())


@cache
def _decoder() -> 'msgspec.json.Decoder':
    """Return a decoder of what the checks read; it leaves out the rest of each entry."""
    parts = {}
    for part, names in _REQUIRED.items():
        types = dict.fromkeys((*names, *_OPTIONAL.get(part, ())), Any)
        if part == 'annotations':
            types['segmentation'] = msgspec.Raw
        parts[part] = list[TypedDict(part, types, total=False)]
    return msgspec.json.Decoder(TypedDict('Instances', parts, total=False))


def _mask_of(annotation: dict) -> Any:
    """Return polygons or RLE of an annotation, None if it has none."""
    mask = annotation.get('segmentation')
    if msgspec is not None and isinstance(mask, msgspec.Raw):
        return _mask_decoder().decode(mask)
    return mask


@cache
def _mask_decoder() -> 'msgspec.json.Decoder':
    return msgspec.json.Decoder()


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause the collector, which would search millions of entries for cycles again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# ---- boxes -------------------------------------------------------------------------------------


def check_boxes(file: CocoFile, classes: Sequence[str] | None) -> np.ndarray | None:
    """Report invalid boxes; count boxes without area, which COCO contains and mmdet drops.

    Args:
        file: A file whose references are sound.
        classes: Classes in training; None for all.

    Returns:
        Whether mmdet keeps each annotation, crowds included; None if none or some are unusable.
    """
    annotations = file.content['annotations']
    boxes = _numbers(file, 'bbox', 4, 'four finite numbers [x, y, width, height]')
    areas = _numbers(file, 'area', 0, 'a finite number')
    crowds, ignored = (_flags(file, name) for name in _OPTIONAL['annotations'])
    if boxes is None or areas is None or crowds is None or ignored is None:
        return None
    far = np.flatnonzero(np.abs(boxes).max(axis=1) > _FAR)
    if far.size:
        file.error(
            f'annotation id={annotations[far[0]]["id"]} in {file.path} has bbox='
            f'{annotations[far[0]]["bbox"]}; expected pixels of the image, not over {_FAR:,.0f} '
            'pixels'
        )
        return None
    sizes = _image_sizes(file)
    ends = boxes[:, :2] + boxes[:, 2:]
    # the conditions of mmdet's CocoDataset.parse_data_info
    outside = (boxes[:, :2] >= sizes).any(1) | (ends <= 0).any(1)
    dropped = outside | (areas <= 0) | (boxes[:, 2:] < 1).any(1)
    if dropped.any():
        file.findings.note(
            f'{file.key}: mmdet leaves out {dropped.sum()} of {len(annotations)} boxes, which '
            'have no area, lie outside of the image, or are narrower than 1 pixel'
        )
    beyond = (ends > sizes + 1).any(1) & ~outside
    if beyond.sum() > len(annotations) / 10:
        file.findings.warn(
            f'{file.key}: {beyond.sum()} of {len(annotations)} boxes in {file.path} end outside '
            'of their image; COCO means [x, y, width, height], not [x1, y1, x2, y2]'
        )
    kept = ~dropped & ~ignored & _is_class(file, classes)
    if not (kept & ~crowds).any():
        hint = (
            ': they seem relative to the image, pixels are expected'
            if boxes.max() <= _RELATIVE
            else ''
        )
        if (crowds | ignored).any():
            hint += f'; {(crowds | ignored).sum()} annotations have iscrowd=1 or ignore=1'
        file.error(
            f'no valid annotation of {len(annotations)} in {file.path}: {dropped.sum()} boxes '
            'have no area, lie outside of the image, or are narrower than 1 pixel'
            f'{hint}'
        )
        return None
    return kept


def _flags(file: CocoFile, name: str) -> np.ndarray | None:
    """Return an optional flag of every annotation. mmdet takes any text for a set flag."""
    annotations = file.content['annotations']
    try:  # the faster way, if all have it
        values = file.column('annotations', name)
    except KeyError:
        values = list(map(methodcaller('get', name, 0), annotations))
    with suppress(TypeError):  # unhashable
        found = set(values)
        if found <= {0, 1}:
            return np.array(values, bool) if any(found) else np.zeros(len(values), bool)
    wrong = next(i for i, value in enumerate(values) if not _is_flag(value))
    file.error(
        f'annotation id={annotations[wrong]["id"]} in {file.path} has '
        f'{name}={values[wrong]!r}; expected 0 or 1'
    )
    return None


def _is_flag(value: Any) -> bool:
    return isinstance(value, (int, float)) and value in (0, 1)


def _numbers(file: CocoFile, name: str, length: int, expected: str) -> np.ndarray | None:
    """Return one number, or a row of ``length`` numbers, of every annotation."""
    values = file.column('annotations', name)
    array = _as_array(values, length)
    if array is not None and np.isfinite(array).all():
        return array
    for annotation in file.content['annotations']:
        numbers = annotation[name] if length else [annotation[name]]
        if not _are_finite(numbers, length or 1):
            file.error(
                f'annotation id={annotation["id"]} in {file.path} has {name}='
                f'{annotation[name]!r}; expected {expected}'
            )
            return None
    return np.array(values, float)


def _as_array(values: list, length: int) -> np.ndarray | None:
    """Convert all at once by loops in C; None if they are not numbers or differ in length."""
    if length:
        if set(map(type, values)) != {list} or set(map(len, values)) != {length}:
            return None
        values = list(itertools.chain.from_iterable(values))
    if not set(map(type, values)) <= {int, float}:
        return None
    with suppress(OverflowError):
        array = np.array(values, float)
        return array.reshape(-1, length) if length else array
    return None


def _are_finite(numbers: Any, length: int) -> bool:
    return (
        isinstance(numbers, list)
        and len(numbers) == length
        and all(
            type(value) in (int, float) and abs(value) <= sys.float_info.max for value in numbers
        )
    )


def _image_sizes(file: CocoFile) -> np.ndarray:
    """Return width and height of each annotation's image: (N, 2)."""
    images = file.content['images']
    sizes = np.array([(image['width'], image['height']) for image in images])
    rows = {image['id']: row for row, image in enumerate(images)}
    return sizes[[rows[key] for key in file.column('annotations', 'image_id')]]


def _is_class(file: CocoFile, classes: Sequence[str] | None) -> np.ndarray:
    used = {
        each['id']: classes is None or each['name'] in classes
        for each in file.content['categories']
    }
    return np.array([used[key] for key in file.column('annotations', 'category_id')])


def check_filter(file: CocoFile, dataset: BaseDataset, kept: np.ndarray) -> None:
    """Report a filter that leaves no image, for which a sampler would loop forever."""
    if dataset.test_mode or not dataset.filter_cfg:
        return
    smallest = dataset.filter_cfg.get('min_size', 0)
    images = file.content['images']
    large = {each['id'] for each in images if min(each['width'], each['height']) >= smallest}
    key = file.dataset_key
    if not large:
        side = max(min(each['width'], each['height']) for each in images)
        file.findings.error(
            f'{key}.filter_cfg.min_size={smallest} leaves none of {len(images)} images of '
            f'{file.path}; the largest has a shorter side of {side} pixels'
        )
    elif dataset.filter_cfg.get('filter_empty_gt', False):
        annotated = itertools.compress(file.column('annotations', 'image_id'), kept.tolist())
        if large.isdisjoint(annotated):
            file.findings.error(
                f'{key}.filter_cfg leaves none of {len(images)} images of {file.path}: those of '
                f'at least min_size={smallest} pixels have no annotation'
            )


# ---- masks -------------------------------------------------------------------------------------


def check_masks(file: CocoFile, kept: np.ndarray) -> None:
    """Check the segmentations that training loads or the evaluation scores.

    Of masks that are only loaded, a sample is checked, since a full pass takes seconds.

    Args:
        file: A file whose references are sound.
        kept: Whether mmdet keeps each annotation; the evaluation reads all of them.
    """
    if not file.masks:
        return
    sizes = {each['id']: [each['height'], each['width']] for each in file.content['images']}
    used = file.content['annotations']
    if not file.scored:
        used = list(itertools.compress(used, kept.tolist()))
    lacking: list = []
    found: dict[str, list] = defaultdict(list)
    checked = used if file.scored else _sample(used)
    count = len(checked)
    for annotation in checked:
        mask = _mask_of(annotation)
        if not mask:
            lacking.append(annotation['id'])
            continue
        size = sizes[annotation['image_id']]
        problem = mask_problem(mask, size, file.scored)
        if problem:
            file.error(f'annotation id={annotation["id"]} in {file.path}: {problem}')
            return
        if not _is_plain(mask, annotation['bbox'], size):
            for name in _oddities(mask, annotation['bbox'], size):
                found[name].append(annotation['id'])
    if lacking:
        where = 'the evaluation scores masks' if file.scored else 'masks are loaded (with_mask)'
        file.error(
            f'{len(lacking)} of {count} annotations in {file.path} have no segmentation, but '
            f'{where}; the first is id={lacking[0]}. Expected polygons or RLE, or a config '
            'without masks'
        )
    _report_oddities(file, found, count)


def _is_plain(mask: Any, box: list[float], size: list[int]) -> bool:
    """Return whether a valid polygon is like nearly all, which is decided by its first corner."""
    if isinstance(mask, dict):
        return False
    first = mask[0]
    count = len(first)
    if count < 6 or count % 2:
        return False
    column, row = first[0], first[1]
    x, y, width, height = box
    return (
        x <= column <= x + width
        and y <= row <= y + height
        and 0 <= column <= size[1]
        and 0 <= row <= size[0]
        and (column > _RELATIVE or row > _RELATIVE)
    )


def _oddities(mask: Any, box: list[float], size: list[int]) -> Iterator[str]:
    """Describe a valid segmentation; the first polygon decides most often."""
    if isinstance(mask, dict):
        if _is_blank(mask['counts']):
            yield 'blank'
        return
    first = mask[0]
    if _is_odd(first) and all(map(_is_odd, mask)):
        yield 'odd'
    if _is_outside(first, *size) and all(_is_outside(part, *size) for part in mask):
        yield 'outside'
    if _is_relative(first) and all(map(_is_relative, mask)) and max(size) > 2:
        yield 'relative'
    if _is_beside(first, *box) and all(_is_beside(part, *box) for part in mask):
        yield 'beside'


def _report_oddities(file: CocoFile, found: dict[str, list], count: int) -> None:
    of = f'of {count} annotations in {file.path}'
    if found['odd']:
        file.findings.note(
            f'{file.key}: mmdet ignores {len(found["odd"])} of {count} instances, whose polygons '
            'have fewer than three corners or an odd number of coordinates'
        )
    if len(found['relative']) == count:
        file.error(
            f'the polygons of all {count} annotations in {file.path} end at {_RELATIVE} pixels: '
            'they seem relative to the image, pixels are expected'
        )
        return
    if found['outside']:
        file.findings.warn(
            f'{file.key}: the polygons of {len(found["outside"])} {of} lie outside of their '
            f'image, so their masks are empty; the first is id={found["outside"][0]}'
        )
    if found['blank']:
        file.findings.warn(
            f'{file.key}: the RLE of {len(found["blank"])} {of} has no pixel, so their masks are '
            f'empty; the first is id={found["blank"][0]}'
        )
    if len(found['beside']) > count / 2:
        file.findings.warn(
            f'{file.key}: the polygons of {len(found["beside"])} {of} do not overlap their bbox, '
            f'the first is id={found["beside"][0]}; COCO means [x1, y1, x2, y2, ...], are x and y '
            'swapped?'
        )


def _is_blank(counts: list[int] | str) -> bool:
    """Return whether a valid RLE has no pixel; encoders write few counts for that."""
    if isinstance(counts, str):
        counts = (_counts_of_rle(counts) or []) if len(counts) <= 24 else [0, 1]
    return not any(counts[1::2])


def _is_relative(polygon: list[float]) -> bool:
    """Return whether a valid polygon ends near the corner of the image."""
    if len(polygon) < 2 or polygon[0] > _RELATIVE or polygon[1] > _RELATIVE:
        return False
    return 0 < max(polygon) <= _RELATIVE


def _is_beside(polygon: list[float], x: float, y: float, width: float, height: float) -> bool:
    """Return whether a valid polygon and a box do not overlap."""
    if len(polygon) < 2 or (x <= polygon[0] <= x + width and y <= polygon[1] <= y + height):
        return False
    xs, ys = polygon[::2], polygon[1::2]
    return max(xs) < x or min(xs) > x + width or max(ys) < y or min(ys) > y + height


def _is_odd(polygon: list[float]) -> bool:
    return len(polygon) < 6 or len(polygon) % 2 == 1


def _is_outside(polygon: list[float], height: int, width: int) -> bool:
    """Return whether no corner of a valid polygon can be in its image."""
    if len(polygon) < 2 or (0 <= polygon[0] <= width and 0 <= polygon[1] <= height):
        return False  # nearly always, so that this is fast
    xs, ys = polygon[::2], polygon[1::2]
    return max(xs) <= 0 or min(xs) >= width or max(ys) <= 0 or min(ys) >= height


def _sample(annotations: list[dict]) -> list[dict]:
    """Choose crowds, which usually are RLE, and others."""
    if len(annotations) <= MASK_SAMPLE:
        return annotations
    crowds: list[dict] = []
    others: list[dict] = []
    for annotation in annotations:
        (crowds if annotation.get('iscrowd') else others).append(annotation)
    return [*sample(crowds, MASK_SAMPLE), *sample(others, MASK_SAMPLE)]


def mask_problem(mask: Any, size: list[int], scored: bool) -> str | None:
    """Describe the problem of a segmentation.

    Args:
        mask: Polygons or RLE.
        size: Height and width of the image.
        scored: Whether pycocotools reads it, which crashes the process for some inputs.

    Returns:
        The problem and the expected value; None if it is valid.
    """
    if isinstance(mask, dict):
        return _rle_problem(mask, size)
    expected = 'expected polygons [[x1, y1, x2, y2, ...], ...]'
    if not isinstance(mask, list) or not all(isinstance(part, list) for part in mask):
        return f'segmentation={_short(mask)}; {expected} or RLE {{"counts", "size"}}'
    for polygon in mask:
        try:  # one pass in C over many numbers; bounds corners and outline
            reach = 2 * math.hypot(*polygon) * math.sqrt(len(polygon))
        except (TypeError, OverflowError):
            reach = math.nan
        if not math.isfinite(reach):
            return f'segmentation={_short(mask)} has values that are not numbers; {expected}'
        if reach > _FAR and _is_huge(polygon):
            return (
                f'segmentation={_short(mask)} has a corner further than {_FAR:,.0f} pixels from '
                f'the image, or an outline of over {_LONG:,.0f} pixels, on which pycocotools '
                'crashes; expected pixels of the image'
            )
        if scored and (not polygon or len(mask[0]) < 5):  # pycocotools reads four numbers as a box
            return (
                f'a polygon of segmentation={_short(mask)} has {min(map(len, mask))} coordinates, '
                'which the evaluation cannot read; expected an even number of at least 6'
            )
    return None


def _is_huge(polygon: list[float]) -> bool:
    corners = np.array(polygon[: len(polygon) // 2 * 2], float).reshape(-1, 2)
    steps = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1)
    return max(map(abs, polygon)) > _FAR or steps.sum() > _LONG


def _rle_problem(mask: dict, size: list[int]) -> str | None:
    counts, own = mask.get('counts'), mask.get('size')
    if not isinstance(counts, (list, str)) or not isinstance(own, (list, tuple)):
        return f'segmentation={_short(mask)}; expected "counts" (a list or text) and "size"'
    if list(own) != size or set(map(type, own)) != {int}:
        return f'segmentation has size={list(own)}, its image {size}; expected the same'
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts):
            return f'segmentation.counts={_short(counts)}; expected non-negative integers'
        total = sum(counts)
    else:
        decoded = _counts_of_rle(counts)
        total = None if decoded is None else sum(decoded)
    if total != size[0] * size[1]:
        return (
            f'segmentation.counts add up to {total} pixels; expected {size[0]} x {size[1]} = '
            f'{size[0] * size[1]}'
        )
    return None


def _counts_of_rle(text: str) -> list[int] | None:
    """Decode the counts of a compressed COCO RLE (six bits per character, mostly differences).

    pycocotools writes out of bounds if their sum is too large.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        if value < 0:
            return None
        counts.append(value)
        value = shift = 0
    return None if shift else counts


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


# ---- all checks --------------------------------------------------------------------------------


def check_coco(file: CocoFile, dataset: BaseDataset, model: dict) -> list[str] | None:
    """Check a data set's file, its images and its stuff maps, if it has any.

    Args:
        file: The data set's ``ann_file``.
        dataset: mmdet's ``CocoDataset`` before it reads files.
        model: The config's model; its semantic head limits the values of stuff maps.

    Returns:
        Names of the classes that match the file, None if the file is unusable.
    """
    if not file.read():
        return None
    sound = check_ids(file) & _check_image_sizes(file)
    folder = dataset.data_prefix.get('img', '')
    _check_images(file, folder)
    file.classes = _check_categories(file, dataset)
    kept = check_entries(file, file.classes) if sound else None
    if kept is not None:
        check_filter(file, dataset, kept)
        _check_occurrence(file, dataset, kept)
    if dataset.data_prefix.get('seg'):
        key = f'{file.dataset_key}.data_prefix.seg'
        _check_stuff_maps(key, file, dataset, model)
    return file.classes


def is_readable(file: CocoFile) -> bool:
    """Read a file; report unreadable content, ids and sizes of images.

    Args:
        file: The file.

    Returns:
        Whether further checks are possible.
    """
    return file.read() and check_ids(file) & _check_image_sizes(file)


def check_entries(file: CocoFile, classes: Sequence[str] | None) -> np.ndarray | None:
    """Check references, boxes and masks of a file with valid ids.

    Args:
        file: The file.
        classes: Classes in training; None for all.

    Returns:
        Whether mmdet keeps each annotation; None if there is none, or if some are unusable.
    """
    if not file.content['annotations'] or not check_references(file):
        return None
    kept = check_boxes(file, classes)
    if kept is not None:
        check_masks(file, kept)
        check_order(file)
    return kept


# ---- entries -----------------------------------------------------------------------------------


def check_ids(file: CocoFile) -> bool:
    """Check that ids and names are unique and supported by COCO evaluation.

    Args:
        file: A file that is read.
    """
    good = True
    for part, names in dict(
        images=('id', 'file_name'), categories=('id', 'name'), annotations=('id',)
    ).items():
        for name in names:
            good &= _are_unique(file, part, name)
    if good and file.scored:
        good = _are_scored(file)
    return good


def _are_unique(file: CocoFile, part: str, name: str) -> bool:
    kinds = (str,) if name in ('file_name', 'name') else (int, str)
    values = file.column(part, name)
    if not set(map(type, values)) <= set(kinds):
        wrong = [value for value in values if type(value) not in kinds]
        expected = ' or '.join('text' if kind is str else 'an integer' for kind in kinds)
        file.error(f'{part} in {file.path} have {name}={wrong[0]!r}; expected {expected}')
        return False
    if len(set(values)) == len(values):
        return True
    value, count = Counter(values).most_common(1)[0]
    file.error(f'{count} {part} in {file.path} have {name}={value!r}; expected unique values')
    return False


def _are_scored(file: CocoFile) -> bool:
    """Check ids as COCO evaluation needs them; it stores those of annotations as floats.

    There, 0 means "no match". Of numbers and text, NumPy makes text.
    """
    for annotation in file.content['annotations']:
        number = annotation['id']
        if not isinstance(number, int) or number == 0 or abs(number) > _HIGHEST_ID:
            file.error(
                f'annotation id={_short(number)} in {file.path}: COCO evaluation reserves 0 for '
                f'"no match"; expected integers from 1 on, up to 2^53 = {_HIGHEST_ID}'
            )
            return False
    for part in ('images', 'categories'):
        ids = file.column(part, 'id')
        if len(set(map(type, ids))) > 1:
            texts = [number for number in ids if isinstance(number, str)]
            file.error(
                f'{len(texts)} of {len(ids)} {part} in {file.path} have text as id, the first is '
                f'{texts[0]!r}, others an integer; expected one type'
            )
            return False
    return True


def check_references(file: CocoFile) -> bool:
    """Report annotations of unknown images and categories, which mmdet drops silently.

    Args:
        file: A file with valid ids.
    """
    good = True
    annotations = file.content['annotations']
    for name, part in dict(image_id='images', category_id='categories').items():
        known = set(file.column(part, 'id'))
        with suppress(TypeError):  # unhashable
            if known.issuperset(file.column('annotations', name)):
                continue
        lost = [
            each
            for each in annotations
            if not isinstance(each[name], (int, str)) or each[name] not in known
        ]
        if lost:
            good = False
            file.error(
                f'{len(lost)} of {len(annotations)} annotations in {file.path} have an unknown '
                f'{name}, the first is id={lost[0]["id"]} with {name}={lost[0][name]!r}; expected '
                f'the id of one of its {len(known)} {part}'
            )
    return good


# ---- boxes and polygons ------------------------------------------------------------------------


def check_order(file: CocoFile) -> None:
    """Compare boxes with the bounds of polygons, which tell other orders of the numbers.

    Boxes of COCO equal the bounds. Those of other sets may differ, for instance where boxes
    include what is hidden. They are an error only if most agree with another order.

    Args:
        file: A file whose boxes are sound; a sample of its annotations with polygons is read.
    """
    found = [
        (annotation, bounds)
        for annotation in sample(file.content['annotations'], _COMPARED)
        if (bounds := _bounds(_mask_of(annotation)))
    ]
    if len(found) < _FEWEST:
        return
    boxes = np.array([annotation['bbox'] for annotation, _ in found], float)
    bounds = np.array([each for _, each in found])
    start, size = boxes[:, :2], boxes[:, 2:]
    slack = _TOLERANCE[0] + _TOLERANCE[1] * np.abs(size).max(axis=1, keepdims=True)
    agree = {
        order: (np.abs(np.hstack(corners) - bounds) <= slack).all(axis=1)
        for order, corners in {
            '': (start, start + size),
            '[x1, y1, x2, y2]': (start, size),
            '[x_center, y_center, width, height]': (start - size / 2, start + size / 2),
            '[y1, x1, y2, x2]': (start[:, ::-1], size[:, ::-1]),
            '[y, x, height, width] (or x and y of the polygons are swapped)': (
                start[:, ::-1],
                (start + size)[:, ::-1],
            ),
        }.items()
    }
    right = agree.pop('')
    order, most = max(agree.items(), key=lambda each: each[1].sum())
    if right.mean() > 0.5 or most.mean() <= 0.5:
        return
    first = found[int(np.argmax(most & ~right))][0]
    file.error(
        f'bbox of {most.sum()} of {len(found)} annotations with polygons in {file.path} seems to '
        f'be {order}, by the bounds of the polygons; the first is id={first["id"]} with '
        f'bbox={first["bbox"]}. COCO means bbox=[x, y, width, height] and polygons '
        '[[x1, y1, x2, y2, ...], ...]'
    )


def _bounds(mask: Any) -> tuple[float, float, float, float] | None:
    """Return x1, y1, x2, y2 of valid polygons, None for other masks."""
    if not isinstance(mask, list) or mask_problem(mask, [], scored=False):
        return None
    xs = [x for polygon in mask if not _is_odd(polygon) for x in polygon[::2]]
    ys = [y for polygon in mask if not _is_odd(polygon) for y in polygon[1::2]]
    return (min(xs), min(ys), max(xs), max(ys)) if xs else None


# ---- images ------------------------------------------------------------------------------------


def _check_image_sizes(file: CocoFile) -> bool:
    for image in file.content['images']:
        for name in ('width', 'height'):
            value = image[name]
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                file.error(
                    f'image id={image["id"]} in {file.path} has {name}={value!r}; expected a '
                    'positive integer'
                )
                return False
    return True


def _check_images(file: CocoFile, folder: str) -> None:
    """Check that all images exist, and compare the sizes of a sample with the file."""
    images = [each for each in file.content['images'] if isinstance(each['file_name'], str)]
    paths = [os.path.join(folder, image['file_name']) for image in images]
    if not are_present(file.key, paths, f'images that {file.path} lists', file.findings):
        return
    sizes = check_pictures(file.key, paths, file.pipeline, file.findings)
    wrong = []
    for image, path in sample(list(zip(images, paths, strict=True))):
        size = sizes.get(path)
        if size and size != (image['width'], image['height']):
            wrong.append(
                f'{path} is {size[0]} x {size[1]}, {file.path} says {image["width"]} x '
                f'{image["height"]}'
            )
    if wrong:
        file.error(
            f'{len(wrong)} of a sample of {len(sample(paths))} images have another size (width x '
            f'height) than annotated: {first_few(wrong, 2)}'
        )


# ---- categories --------------------------------------------------------------------------------


def _check_categories(file: CocoFile, dataset: BaseDataset) -> list[str]:
    """Report category errors that mmdet accepts silently, and return the matching class names.

    mmdet drops categories that are not classes and numbers the others in the order of the file.
    """
    names = file.column('categories', 'name')
    classes = dataset.metainfo['classes']
    key = file.dataset_key
    lines = {f'{key}.metainfo.classes': tuple(names)}
    if isinstance(classes, str):
        file.findings.error(
            f'{key}.metainfo.classes={classes!r} is text; expected a tuple of names, which has a '
            f"comma even with one: ('{classes}',)",
            lines,
        )
        return names
    classes = list(classes)
    absent = [name for name in classes if name not in names]
    unknown = [name for name in names if name not in classes]
    default = classes == list(type(dataset).METAINFO['classes'])
    order = names if absent or (unknown and default) else list(_kept(names, classes))
    if not _are_in_same_order(file, dataset, order):
        return order
    if absent:
        file.error(
            f'{file.path} has no category {absent[0]!r} (of {len(absent)} classes that are '
            f'missing), found {first_few(names, 10)}',
            lines if unknown else {f'{key}.metainfo.classes': _kept(names, classes)},
        )
        return names
    if unknown and default:
        file.error(
            f'category {unknown[0]!r} (of {len(unknown)}) in {file.path} is not a class of '
            f'{type(dataset).__name__}; name yours in metainfo=dict(classes=(...)) of each split',
            lines,
        )
        return names
    if unknown:
        file.findings.note(
            f'{file.key}: categories not in metainfo.classes are left out: {unknown}'
        )
    if order != classes:
        file.error(
            f'classes must come in the order of {file.path}: {order}, got {classes}',
            {f'{key}.metainfo.classes': tuple(order)},
        )
    return order


def _are_in_same_order(file: CocoFile, dataset: BaseDataset, classes: list[str]) -> bool:
    """Compare the classes with those of the config's first file; texts need no labels."""
    if file.reference is None or getattr(dataset, 'return_classes', False):
        return True
    path, expected = file.reference
    if classes == expected:
        return True
    found = _kept(file.column('categories', 'name'), expected)
    complete = len(found) == len(expected)
    remedy = '; reorder the categories' if complete and list(found) != expected else ''
    lines = {f'{file.dataset_key}.metainfo.classes': tuple(expected)}
    file.error(
        f'{file.path} numbers classes in another way than {path}: '
        f'{difference(classes, expected)}. mmdet numbers them in the order of each file{remedy}',
        lines if complete and list(dataset.metainfo['classes']) != expected else None,
    )
    return False


def difference(classes: Sequence[str], expected: Sequence[str]) -> str:
    """Describe the first difference of two lists of classes.

    Args:
        classes: Names in the order of the labels.
        expected: Other ones.
    """
    pairs = enumerate(itertools.zip_longest(classes, expected))
    number, (found, other) = next(each for each in pairs if each[1][0] != each[1][1])
    return f'class {number} is {found!r}; expected {other!r}'


def _check_occurrence(file: CocoFile, dataset: BaseDataset, kept: np.ndarray) -> None:
    """Report own classes without annotations; subsets of COCO may lack some of its classes."""
    if dataset.test_mode or file.classes == list(type(dataset).METAINFO['classes']):
        return
    used = set(itertools.compress(file.column('annotations', 'category_id'), kept.tolist()))
    absent = [
        each['name']
        for each in file.content['categories']
        if each['id'] not in used and each['name'] in (file.classes or ())
    ]
    if absent:
        file.findings.warn(
            f'{file.key}: {len(absent)} of {len(file.classes or ())} classes have no valid '
            f'annotation in {file.path}: {first_few(absent, 5)}'
        )


def _kept(names: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in classes)


# ---- stuff maps --------------------------------------------------------------------------------


def _check_stuff_maps(key: str, file: CocoFile, dataset: BaseDataset, model: dict) -> None:
    """Check that all stuff maps exist, and the values of a sample against the head's classes."""
    folder, suffix = dataset.data_prefix['seg'], dataset.seg_map_suffix
    images = file.content['images']
    paths = [
        os.path.join(folder, image['file_name'].rsplit('.', 1)[0] + suffix) for image in images
    ]
    if not are_present(key, paths, 'label maps', file.findings):
        return
    for image, path in sample(list(zip(images, paths, strict=True))):
        try:
            size = picture_size(path, dict(color_type='unchanged'))
        except OSError:  # reported below
            continue
        if size and size != (image['width'], image['height']):
            file.findings.error(
                f'{key}: {path} has {size[0]} x {size[1]} pixels, but its image has '
                f'{image["width"]} x {image["height"]}; expected the same size'
            )
            break
    head = (model.get('roi_head') or {}).get('semantic_head') or {}
    if 'num_classes' in head:
        ignored = (head.get('loss_seg') or {}).get('ignore_index', IGNORED)
        note = f'model.roi_head.semantic_head.num_classes={head["num_classes"]}'
        loaders = [step for step in dicts_in(file.pipeline) if kind_of(step) == 'LoadAnnotations']
        decoder = (loaders[0] if loaders else {}, 'cv2')
        highest = head['num_classes'] - 1
        check_values(key, paths, highest, {ignored}, note, decoder, file.findings)


# ---- evaluators --------------------------------------------------------------------------------


@dataclass(frozen=True)
class CocoMetric:
    """Settings of COCO evaluation that the checks use.

    Args:
        key: Key of its annotation file in the config.
        path: The file; None if it scores the data set's own annotations.
        masks: Whether it scores masks.
        sorts: Whether it sorts categories by id, as mmdet does for Objects365.
    """

    key: str
    path: str | None
    masks: bool
    sorts: bool

    def reads(self, path: str) -> bool:
        """Return whether it reads a file.

        Args:
            path: The file.
        """
        return bool(self.path) and os.path.realpath(self.path) == os.path.realpath(path)


def coco_metrics(cfg: Config, split: str) -> list[CocoMetric]:
    """Return the COCO metrics of a split that compute scores.

    Args:
        cfg: Complete config.
        split: ``train``, ``val`` or ``test``.
    """
    found = []
    for key, metric in metrics_of(cfg, split):
        if kind_of(metric) == 'CocoMetric' and not metric.get('format_only'):
            kinds = metric.get('metric', 'bbox')
            masks = 'segm' in ([kinds] if isinstance(kinds, str) else kinds)
            sorts = bool(metric.get('sort_categories'))
            found.append(CocoMetric(f'{key}.ann_file', metric.get('ann_file'), masks, sorts))
    return found


def check_evaluator(
    cfg: Config, split: str, data_files: Sequence[CocoFile], findings: Findings
) -> None:
    """Check that an evaluator's files exist, and that COCO files fit the data set.

    Args:
        cfg: Complete config.
        split: ``train``, ``val`` or ``test``.
        data_files: COCO files of the data set, already read.
        findings: Collects the errors.
    """
    hint = "It is usually the data set's own."
    for key, metric in metrics_of(cfg, split):
        if metric.get('ann_file'):
            has_file(metric['ann_file'], hint, f'{key}.ann_file', findings)
    for scores in coco_metrics(cfg, split):
        if not (data_files and scores.path and os.path.isfile(scores.path)):
            continue
        own = next((each for each in data_files if scores.reads(each.path)), None)
        if own is None:
            optional = split == 'test'
            file = CocoFile(scores.key, scores.path, findings, scores.masks, True, optional)
            if not is_readable(file):
                continue
            check_entries(file, None)
        else:
            file = own
        _compare(file, data_files, scores.sorts)


def _compare(file: CocoFile, data_files: Sequence[CocoFile], sorts: bool) -> None:
    """Compare the file of an evaluator with those of its data set."""
    for data in data_files:
        _compare_categories(file, data, sorts)
        if data is not file:
            _compare_images(file, data)
    known = {key for data in data_files for key in data.column('images', 'id')}
    more = [key for key in file.column('images', 'id') if key not in known]
    if more:
        file.findings.warn(
            f'{file.key}: {len(more)} of {len(file.content["images"])} images of {file.path} are '
            f'not in the data set, the first has id={more[0]!r}; their objects count as missed'
        )


def _compare_categories(file: CocoFile, data: CocoFile, sorts: bool) -> None:
    """Compare the categories by which mmdet translates labels: its classes, in the file's order.

    The ids may differ.
    """
    names = data.column('categories', 'name')
    classes = data.classes or names
    categories = file.content['categories']
    if sorts:
        with suppress(TypeError):  # ids of several types, reported already
            categories = sorted(categories, key=lambda category: category['id'])
    own = [category['name'] for category in categories]
    expected, found = ([name for name in each if name in classes] for each in (names, own))
    if found == expected:
        return
    if sorted(found) == sorted(expected):
        file.error(
            f'{file.path} has the categories {first_few(own, 5)}'
            f'{", sorted by id (sort_categories=True)" if sorts else ""}, but {data.path} has '
            f'another order: {first_few(names, 5)}. mmdet numbers classes by the order; expected '
            'the same one'
        )
    else:
        file.error(
            f'{file.path} has the categories {first_few(own, 5)}, but {data.path} has '
            f'{first_few(names, 5)}'
        )


def _compare_images(file: CocoFile, data: CocoFile) -> None:
    """Compare names and sizes of images with equal ids."""
    known = {image['id']: image for image in file.content['images']}
    images = data.content['images']
    lost = [image['id'] for image in images if image['id'] not in known]
    if lost:
        file.error(
            f'{len(lost)} of {len(images)} images of {data.path} are not in {file.path}, the '
            f'first has id={lost[0]!r}; expected the annotations of the same images'
        )
    pairs = [(image, known[image['id']]) for image in images if image['id'] in known]
    others = [pair for pair in pairs if not _is_same_image(*pair)]
    if others:
        image, other = others[0]
        file.error(
            f'{len(others)} of {len(images)} images of {data.path} have another name or size in '
            f'{file.path}: id={image["id"]!r} is {_describe(image)} in the first, '
            f'{_describe(other)} in the second; expected the annotations of the same images'
        )
    elif data.content['annotations'] and not lost:
        _compare_counts(file, data)


def _compare_counts(file: CocoFile, data: CocoFile) -> None:
    """Compare the number of annotations, as images of two splits may have the same names."""
    counts = [Counter(each.column('annotations', 'image_id')) for each in (file, data)]
    images = data.content['images']
    different = [image for image in images if counts[0][image['id']] != counts[1][image['id']]]
    if different:
        image = different[0]
        file.findings.warn(
            f'{file.key}: {len(different)} of {len(images)} images have another number of '
            f'annotations in {file.path} than in {data.path}, the first is {_describe(image)}: '
            f'{counts[0][image["id"]]} instead of {counts[1][image["id"]]}'
        )


def _is_same_image(first: dict, second: dict) -> bool:
    """Compare two entries; one name may have leading folders that the other one lacks."""
    if any(first[name] != second[name] for name in ('width', 'height')):
        return False
    short, long = sorted((str(first['file_name']), str(second['file_name'])), key=len)
    return f'/{long}'.endswith(f'/{short}')


def _describe(image: dict) -> str:
    return f'{image["file_name"]} ({image["width"]} x {image["height"]})'
