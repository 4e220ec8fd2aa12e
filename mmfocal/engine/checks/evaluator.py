# SPDX-License-Identifier: Apache-2.0
"""Checks of evaluators: their files, compared with those of the data sets."""

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from mmengine.config import Config

from ..findings import Findings, first_few
from ..machine import kind_of
from .coco import CocoFile, check_entries, is_readable
from .images import has_file


@dataclass(frozen=True)
class CocoMetric:
    """What COCO evaluation reads.

    Args:
        path: Its annotation file; None if it scores the data set's own annotations.
        masks: Whether it scores masks.
        sorts: Whether it sorts categories by id, as mmdet does for Objects365.
    """

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
    for metric in _metrics(cfg, split):
        if kind_of(metric) == 'CocoMetric' and not metric.get('format_only'):
            kinds = metric.get('metric', 'bbox')
            masks = 'segm' in ([kinds] if isinstance(kinds, str) else kinds)
            sorts = bool(metric.get('sort_categories'))
            found.append(CocoMetric(metric.get('ann_file'), masks, sorts))
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
    key = f'{split}_evaluator.ann_file'
    for metric in _metrics(cfg, split):
        if metric.get('ann_file'):
            has_file(metric['ann_file'], "It is usually the data set's own.", key, findings)
    for scores in coco_metrics(cfg, split):
        if not (data_files and scores.path and os.path.isfile(scores.path)):
            continue
        own = next((each for each in data_files if scores.reads(each.path)), None)
        if own is None:
            optional = split == 'test'
            file = CocoFile(key, scores.path, findings, scores.masks, True, optional)
            if not is_readable(file):
                continue
            check_entries(file, None)
        else:
            file = own
        _compare(file, data_files, scores.sorts)


def _metrics(cfg: Config, split: str) -> list[dict]:
    evaluator = cfg.get(f'{split}_evaluator') or []
    listed = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    return [metric for metric in listed if metric]


def _compare(file: CocoFile, data_files: Sequence[CocoFile], sorts: bool) -> None:
    """Compare the file of an evaluator with those of its data set."""
    for data in data_files:
        _compare_categories(file, data, sorts)
        if data is not file:
            _compare_images(file, data)
    known = {image['id'] for data in data_files for image in data.content['images']}
    more = [image['id'] for image in file.content['images'] if image['id'] not in known]
    if more:
        file.findings.warn(
            f'{file.key}: {len(more)} of {len(file.content["images"])} images of {file.path} are '
            f'not in the data set, the first has id={more[0]!r}; their objects count as missed'
        )


def _compare_categories(file: CocoFile, data: CocoFile, sorts: bool) -> None:
    """Compare the categories by which mmdet translates labels: its classes, in the file's order.

    The ids may differ.
    """
    names = [category['name'] for category in data.content['categories']]
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
            f'{len(others)} of {len(images)} images of {data.path} are other ones in {file.path}: '
            f'id={image["id"]!r} is {_describe(image)} in the first, {_describe(other)} in the '
            'second; expected the annotations of the same images'
        )
    elif data.content['annotations'] and not lost:
        _compare_counts(file, data)


def _compare_counts(file: CocoFile, data: CocoFile) -> None:
    """Compare the number of annotations, as images of two splits may have the same names."""
    counts = [
        Counter(annotation['image_id'] for annotation in each.content['annotations'])
        for each in (file, data)
    ]
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
