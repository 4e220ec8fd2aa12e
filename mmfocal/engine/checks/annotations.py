# SPDX-License-Identifier: Apache-2.0
"""Checks of COCO files: entries, images, categories and stuff maps."""

import os
from collections import Counter
from collections.abc import Sequence

from mmengine.dataset import BaseDataset

from ..findings import first_few
from .boxes import check_boxes, check_filter
from .coco_file import CocoFile
from .label_maps import IGNORED, check_values
from .masks import check_masks
from .pictures import are_present, check_pictures, picture_size, sample


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
    classes = _check_categories(file, dataset)
    if sound and file.content['annotations'] and check_references(file):
        kept = check_boxes(file, classes)
        if kept is not None:
            check_masks(file, kept)
            check_filter(file, dataset, kept)
    if dataset.data_prefix.get('seg'):
        key = f'{file.key.removesuffix(".ann_file")}.data_prefix.seg'
        _check_stuff_maps(key, file, dataset, model)
    return classes


def check_scored_file(file: CocoFile, dataset_file: CocoFile) -> None:
    """Check a file that only an evaluator reads.

    Args:
        file: The evaluator's ``ann_file``.
        dataset_file: File of the data set, already read.
    """
    if not file.read() or not check_ids(file) & _check_image_sizes(file):
        return
    known = {image['id'] for image in file.content['images']}
    images = dataset_file.content.get('images', [])
    lost = [image['id'] for image in images if image['id'] not in known]
    if lost:
        file.error(
            f'{len(lost)} of {len(images)} images of {dataset_file.path} are not in {file.path}, '
            f'the first has id={lost[0]!r}; expected the annotations of the same images'
        )
    names = [sorted(str(c['name']) for c in f.content['categories']) for f in (file, dataset_file)]
    if names[0] != names[1]:
        file.error(
            f'{file.path} has the categories {first_few(names[0], 5)}, but {dataset_file.path} '
            f'has {first_few(names[1], 5)}'
        )
    if file.content['annotations'] and check_references(file):
        kept = check_boxes(file, None)
        if kept is not None:
            check_masks(file, kept)


# ---- entries ------------------------------------------------------------------------------------


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
    entries = file.content[part]
    kinds = (str,) if name in ('file_name', 'name') else (int, str)
    wrong = [each[name] for each in entries if not isinstance(each[name], kinds)]
    if wrong:
        expected = ' or '.join('text' if kind is str else 'an integer' for kind in kinds)
        file.error(f'{part} in {file.path} have {name}={wrong[0]!r}; expected {expected}')
        return False
    values = [each[name] for each in entries]
    if len(set(values)) == len(values):
        return True
    value, count = Counter(values).most_common(1)[0]
    file.error(
        f'{count} {part} in {file.path} have {name}={value!r}; expected a {name} of its own for '
        'each'
    )
    return False


def _are_scored(file: CocoFile) -> bool:
    """Check ids of annotations: COCO evaluation needs numbers, and 0 means "no match"."""
    for annotation in file.content['annotations']:
        number = annotation['id']
        if not isinstance(number, int) or number == 0:
            file.error(
                f'annotation id={number!r} in {file.path}: the evaluation takes 0 for "no match" '
                'and needs numbers; expected ids from 1 on'
            )
            return False
        if annotation['iscrowd'] not in (0, 1):
            file.error(
                f'annotation id={number} in {file.path} has iscrowd={annotation["iscrowd"]!r}; '
                'expected 0 or 1'
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
        known = {entry['id'] for entry in file.content[part]}
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


# ---- images -------------------------------------------------------------------------------------


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
    check_pictures(file.key, paths, file.findings)
    wrong = []
    for image, path in sample(list(zip(images, paths, strict=True))):
        try:
            size = picture_size(path)
        except OSError:  # reported already
            continue
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


# ---- categories ---------------------------------------------------------------------------------


def _check_categories(file: CocoFile, dataset: BaseDataset) -> list[str]:
    """Report category errors that mmdet accepts silently, and return the matching class names.

    mmdet drops categories that are not classes and numbers the others in the order of the file.
    """
    names = [category['name'] for category in file.content['categories']]
    classes = dataset.metainfo['classes']
    key = file.key.removesuffix('.ann_file')
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
    order = _kept(names, classes)
    if list(order) != classes:
        file.error(
            f'classes must come in the order of {file.path}: {list(order)}, got {classes}',
            {f'{key}.metainfo.classes': order},
        )
    return list(order)


def _kept(names: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in classes)


# ---- stuff maps ---------------------------------------------------------------------------------


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
            size = picture_size(path)
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
        check_values(key, paths, head['num_classes'] - 1, {ignored}, note, file.findings)
