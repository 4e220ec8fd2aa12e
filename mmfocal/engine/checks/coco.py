# SPDX-License-Identifier: Apache-2.0
"""Does a COCO file fit its images and the data set's classes?"""

import json
import math
import os
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from .files import missing_files
from .label_maps import IGNORED, check_presence, check_values

_REQUIRED = {  # what mmdet reads without asking
    'images': ('id', 'file_name', 'height', 'width'),
    'categories': ('id', 'name'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
}


def check_coco(key: str, dataset: BaseDataset, model: dict, is_test: bool) -> None:
    """Check a COCO instances file, its images and its stuff maps, if the data set has any.

    Args:
        key: Where the config has the data set.
        dataset: mmdet's ``CocoDataset``, not yet read.
        model: The config's model; its semantic head limits the values of stuff maps.
        is_test: The file may lack annotations, as COCO's ``image_info_test-dev2017.json`` does.

    Raises:
        FileNotFoundError: If an image or a stuff map is missing; names the first.
        ValueError: If entries are missing, refer to nothing, or do not fit the classes.
    """
    path, ann_key = dataset.ann_file, f'{key}.ann_file'
    content = _read(ann_key, path)
    _check_entries(ann_key, path, content, is_test)
    _check_images(ann_key, path, content, dataset.data_prefix.get('img', ''))
    _check_categories(ann_key, path, content, dataset)
    if content.get('annotations'):
        _check_references(ann_key, path, content)
        _check_boxes(ann_key, path, content)
    if dataset.data_prefix.get('seg'):
        _check_stuff_maps(f'{key}.data_prefix.seg', content, dataset, model)


def _read(key: str, path: str) -> dict:
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except ValueError as error:
        raise ValueError(f'{key}: {path} is no JSON: {error}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{key}: {path} is a {type(content).__name__}; expected COCO instances')
    return content


def _check_entries(key: str, path: str, content: dict, is_test: bool) -> None:
    for part, names in _REQUIRED.items():
        entries = content.get(part)
        if not entries and part == 'annotations' and is_test:
            continue
        if not entries:
            raise ValueError(f'{key}: {path} has no {part!r}; expected a COCO instances file')
        for index, entry in enumerate(entries):
            absent = [name for name in names if name not in entry]
            if absent:
                raise ValueError(f'{key}: {part}[{index}] in {path} has no {absent[0]!r}')


def _check_images(key: str, path: str, content: dict, folder: str) -> None:
    names = [image['file_name'] for image in content['images']]
    missing = list(missing_files(os.path.join(folder, name) for name in names))
    if missing:
        raise FileNotFoundError(
            f'{key}: {len(missing)} of {len(names)} images that {path} lists are missing, '
            f'the first is {missing[0]}'
        )


def _check_categories(key: str, path: str, content: dict, dataset: BaseDataset) -> None:
    """Refuse what mmdet takes silently.

    It drops categories that are no classes, and numbers the others in the order of the file.
    """
    names = [category['name'] for category in content['categories']]
    classes = list(dataset.metainfo['classes'])
    absent = [name for name in classes if name not in names]
    if absent:
        raise ValueError(
            f'{key}: {path} has no category {absent[0]!r} (of {len(absent)}), found {names}'
        )
    unknown = [name for name in names if name not in classes]
    if unknown and classes == list(type(dataset).METAINFO['classes']):
        raise ValueError(
            f'{key}: category {unknown[0]!r} (of {len(unknown)}) in {path} is not a class of '
            f'{type(dataset).__name__}; name yours in metainfo=dict(classes=(...)) of each split'
        )
    if unknown:
        print_log(f'{key}: categories not in metainfo.classes are left out: {unknown}')
    order = [name for name in names if name in classes]
    if order != classes:
        raise ValueError(
            f'{key}: classes must come in the order of {path}: {order}, got {classes}'
        )


def _check_references(key: str, path: str, content: dict) -> None:
    """Refuse annotations of unknown images and categories, which mmdet drops silently."""
    for name, part in dict(image_id='images', category_id='categories').items():
        known = {entry['id'] for entry in content[part]}
        lost = [entry for entry in content['annotations'] if entry[name] not in known]
        if lost:
            raise ValueError(
                f'{key}: {len(lost)} of {len(content["annotations"])} annotations in {path} have '
                f'an unknown {name}, the first is id={lost[0]["id"]} with {name}='
                f'{lost[0][name]!r}; expected the id of one of its {len(known)} {part}'
            )


def _check_boxes(key: str, path: str, content: dict) -> None:
    """Refuse what is no box; count those without area, which mmdet drops and COCO's set has."""
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    dropped = 0
    for annotation in content['annotations']:
        box = annotation['bbox']
        if not _is_box(box):
            raise ValueError(
                f'{key}: annotation id={annotation["id"]} in {path} has bbox={box!r}; expected '
                'four finite numbers [x, y, width, height]'
            )
        dropped += _has_no_area(box, annotation['area'], *sizes[annotation['image_id']])
    if dropped:
        print_log(
            f'{key}: mmdet leaves out {dropped} of {len(content["annotations"])} boxes, which '
            'have no area, lie outside of the image, or are narrower than 1 pixel'
        )


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, (int, float)) and math.isfinite(value) for value in box)
    )


def _has_no_area(box: list[float], area: float, width: int, height: int) -> bool:
    """Ask what mmdet's ``CocoDataset.parse_data_info`` asks."""
    x, y, w, h = box
    outside = x >= width or y >= height or x + w <= 0 or y + h <= 0
    return outside or area <= 0 or w < 1 or h < 1


def _check_stuff_maps(key: str, content: dict, dataset: BaseDataset, model: dict) -> None:
    """Look for every image's stuff map, and into some for values that the head lacks."""
    folder, suffix = dataset.data_prefix['seg'], dataset.seg_map_suffix
    paths = [
        os.path.join(folder, image['file_name'].rsplit('.', 1)[0] + suffix)
        for image in content['images']
    ]
    check_presence(key, paths)
    head = (model.get('roi_head') or {}).get('semantic_head') or {}
    if 'num_classes' in head:
        ignored = (head.get('loss_seg') or {}).get('ignore_index', IGNORED)
        note = f'model.roi_head.semantic_head.num_classes={head["num_classes"]}'
        check_values(key, paths, head['num_classes'] - 1, {ignored}, note)
