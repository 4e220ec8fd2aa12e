# SPDX-License-Identifier: Apache-2.0
"""Checks of polygons and RLE."""

import itertools
from typing import Any

import numpy as np

from .coco_file import CocoFile
from .pictures import sample

SAMPLE = 100_000  # polygons that are checked in a file for training


def check_masks(file: CocoFile, kept: np.ndarray) -> None:
    """Check the segmentations that training loads or the evaluation scores.

    Args:
        file: A file whose references are sound.
        kept: Whether mmdet keeps each annotation; the evaluation reads all of them.

    Of polygons that are only loaded, a sample is checked, since a full pass takes seconds. RLE,
    for which pycocotools can crash, is rare in large files and checked completely.
    """
    if not file.masks:
        return
    sizes = {each['id']: [each['height'], each['width']] for each in file.content['images']}
    used = [
        annotation
        for annotation, is_kept in zip(file.content['annotations'], kept.tolist(), strict=True)
        if is_kept or file.scored
    ]
    lacking, odd = [], 0
    checked = used if file.scored else _sample(used)
    count = len(checked)
    for annotation in checked:
        mask = annotation.get('segmentation')
        if not mask:
            lacking.append(annotation['id'])
            continue
        problem = mask_problem(mask, sizes[annotation['image_id']], file.scored)
        if problem:
            file.error(f'annotation id={annotation["id"]} in {file.path}: {problem}')
            return
        odd += isinstance(mask, list) and all(len(part) < 6 or len(part) % 2 for part in mask)
    if lacking:
        where = 'the evaluation scores masks' if file.scored else 'masks are loaded (with_mask)'
        file.error(
            f'{len(lacking)} of {count} annotations in {file.path} have no segmentation, but '
            f'{where}; the first is id={lacking[0]}. Expected polygons or RLE, or a config '
            'without masks'
        )
    if odd:
        file.findings.note(
            f'{file.key}: mmdet ignores {odd} of {count} instances, whose polygons have fewer '
            'than three corners or an odd number of coordinates'
        )


def _sample(annotations: list[dict]) -> list[dict]:
    if len(annotations) <= SAMPLE:
        return annotations
    is_rle = [isinstance(each.get('segmentation'), dict) for each in annotations]
    polygons = [each for each, rle in zip(annotations, is_rle, strict=True) if not rle]
    return [*itertools.compress(annotations, is_rle), *sample(polygons, SAMPLE)]


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
        try:  # one pass in C over many numbers
            finite = np.isfinite(sum(polygon))
        except TypeError:
            finite = False
        if not finite:
            return f'segmentation={_short(mask)} has something else than numbers; {expected}'
        if scored and (not polygon or len(mask[0]) < 5):  # pycocotools reads four numbers as a box
            return (
                f'a polygon of segmentation={_short(mask)} has {min(map(len, mask))} coordinates, '
                'which the evaluation cannot read; expected an even number of at least 6'
            )
    return None


def _rle_problem(mask: dict, size: list[int]) -> str | None:
    counts, own = mask.get('counts'), mask.get('size')
    if not isinstance(counts, (list, str)) or not isinstance(own, (list, tuple)):
        return f'segmentation={_short(mask)}; expected "counts" (a list or text) and "size"'
    if list(own) != size:
        return f'segmentation has size={list(own)}, its image {size}; expected the same'
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts):
            return f'segmentation.counts={_short(counts)}; expected non-negative integers'
        total = sum(counts)
    else:
        total = _length_of_rle(counts)
    if total != size[0] * size[1]:
        return (
            f'segmentation.counts add up to {total} pixels; expected {size[0]} x {size[1]} = '
            f'{size[0] * size[1]}'
        )
    return None


def _length_of_rle(text: str) -> int | None:
    """Sum the counts of a compressed COCO RLE (six bits per character, mostly differences).

    pycocotools writes out of bounds if the sum is too large.
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
    return None if shift else sum(counts)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
