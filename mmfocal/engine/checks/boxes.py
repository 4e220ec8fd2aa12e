# SPDX-License-Identifier: Apache-2.0
"""Checks of boxes, and of what mmdet's filters leave."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset

from .coco_file import CocoFile


def check_boxes(file: CocoFile, classes: Sequence[str] | None) -> np.ndarray | None:
    """Report invalid boxes; count boxes without area, which COCO contains and mmdet drops.

    Args:
        file: A file whose references are sound.
        classes: Classes in training; None for all.

    Returns:
        Whether mmdet keeps each annotation; None if some have no box.
    """
    annotations = file.content['annotations']
    boxes = _numbers(file, 'bbox', 4, 'four finite numbers [x, y, width, height]')
    areas = _numbers(file, 'area', 0, 'a finite number')
    if boxes is None or areas is None:
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
    kept = ~dropped & _is_class(file, classes)
    kept &= [not each.get('ignore', False) for each in annotations]
    if not kept.any():
        hint = (
            ': they seem relative to the image, pixels are expected' if boxes.max() <= 1.5 else ''
        )
        file.error(
            f'none of the {len(annotations)} annotations in {file.path} is left: {dropped.sum()} '
            'boxes have no area, lie outside of the image, or are narrower than 1 pixel'
            f'{hint}'
        )
        return None
    return kept


def _numbers(file: CocoFile, name: str, length: int, expected: str) -> np.ndarray | None:
    """Return one number, or a row of ``length`` numbers, of every annotation."""
    values = [each[name] for each in file.content['annotations']]
    shape = (length,) if length else ()
    array = _as_array(values)
    if array is not None and array.shape[1:] == shape and np.isfinite(array).all():
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


def _as_array(values: list) -> np.ndarray | None:
    """Convert all at once, which is fast; None if they are not numbers or differ in length."""
    try:
        array = np.array(values)
    except ValueError:
        return None
    return array if array.dtype.kind in 'if' else None


def _are_finite(numbers: Any, length: int) -> bool:
    return (
        isinstance(numbers, list)
        and len(numbers) == length
        and all(type(value) in (int, float) and np.isfinite(value) for value in numbers)
    )


def _image_sizes(file: CocoFile) -> np.ndarray:
    """Return width and height of each annotation's image: (N, 2)."""
    images = file.content['images']
    sizes = np.array([(image['width'], image['height']) for image in images])
    rows = {image['id']: row for row, image in enumerate(images)}
    return sizes[[rows[each['image_id']] for each in file.content['annotations']]]


def _is_class(file: CocoFile, classes: Sequence[str] | None) -> np.ndarray:
    used = {
        each['id']: classes is None or each['name'] in classes
        for each in file.content['categories']
    }
    return np.array([used[each['category_id']] for each in file.content['annotations']])


def check_filter(file: CocoFile, dataset: BaseDataset, kept: np.ndarray) -> None:
    """Report a filter that leaves no image, for which a sampler would loop forever."""
    if dataset.test_mode or not dataset.filter_cfg:
        return
    smallest = dataset.filter_cfg.get('min_size', 0)
    images = file.content['images']
    large = {each['id'] for each in images if min(each['width'], each['height']) >= smallest}
    key = file.key.removesuffix('.ann_file')
    if not large:
        side = max(min(each['width'], each['height']) for each in images)
        file.findings.error(
            f'{key}.filter_cfg.min_size={smallest} leaves none of {len(images)} images of '
            f'{file.path}; the largest has a shorter side of {side} pixels'
        )
    elif dataset.filter_cfg.get('filter_empty_gt', False):
        annotated = {each['image_id'] for each in np.array(file.content['annotations'])[kept]}
        if not annotated & large:
            file.findings.error(
                f'{key}.filter_cfg leaves none of {len(images)} images of {file.path}: those of '
                f'at least min_size={smallest} pixels have no annotation'
            )
