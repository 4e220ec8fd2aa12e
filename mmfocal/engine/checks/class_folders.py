# SPDX-License-Identifier: Apache-2.0
"""Checks of class folders, image lists and accuracies of classifiers."""

import os
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset

from ..findings import Findings, first_few
from ..machine import kind_of
from .pictures import are_present, check_pictures

_SYSTEM_FOLDERS = ('__MACOSX', '@eaDir', 'lost+found', '$RECYCLE.BIN')


def check_class_folders(key: str, dataset: BaseDataset, findings: Findings) -> list[str] | None:
    """Check class folders of mmpretrain's ``CustomDataset``.

    Args:
        key: Key of the data set in the config.
        dataset: ``CustomDataset`` or a relative, not yet read.
        findings: Collects the errors.

    Returns:
        Class names by label if folders define the classes, else None.
    """
    root = dataset.img_prefix
    if dataset.ann_file or not dataset.with_label or not os.path.isdir(root):
        return None
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    key = f'{key}.data_prefix'
    if not folders:
        findings.error(f'{key}: expected a folder of pictures per class in {root}, found none')
        return None
    hidden = [name for name in folders if name.startswith('.') or name in _SYSTEM_FOLDERS]
    if hidden:
        findings.error(
            f'{key}: {root} has the folders {first_few(hidden)}, which would become classes; '
            'remove them'
        )
    folders = [name for name in folders if name not in hidden]
    firsts = {name: _first_picture(os.path.join(root, name), dataset) for name in folders}
    empty = [name for name, path in firsts.items() if path is None]
    if empty:
        findings.warn(
            f'{key}: {len(empty)} of {len(folders)} class folders in {root} hold no picture '
            f'({" ".join(sorted(dataset.extensions))}): {first_few(empty)}'
        )
    if len(empty) == len(folders):
        findings.error(f'{key}: no class folder in {root} holds a picture')
    check_pictures(key, [path for path in firsts.values() if path], findings)
    _check_names(key, root, dataset, folders, findings)
    return folders


def _first_picture(folder: str, dataset: BaseDataset) -> str | None:
    for place, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if dataset.is_valid_file(name):
                return os.path.join(place, name)
    return None


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


def check_image_list(key: str, dataset: BaseDataset, findings: Findings) -> tuple[int, str] | None:
    """Check an annotation file with lines ``path label`` in mmpretrain's format.

    Args:
        key: Key of the data set in the config.
        dataset: ``CustomDataset`` or a relative, not yet read.
        findings: Collects the errors.

    Returns:
        The highest label and its line, or None.
    """
    path, key = dataset.ann_file, f'{key}.ann_file'
    lines = [line for line in Path(path).read_text(encoding='utf-8').splitlines() if line.strip()]
    if not lines:
        findings.error(f"{key}: {path} is empty; expected lines of a picture's path and a label")
        return None
    names, labels = [], []
    for number, line in enumerate(lines, start=1):
        name, _, label = line.strip().rpartition(' ')
        if not dataset.with_label:
            name = line.strip()
        elif not name or not label.isdigit():
            findings.error(
                f'{key}: line {number} of {path} is {line!r}; expected a path and a label from 0 '
                'on'
            )
            return None
        names.append(os.path.join(dataset.img_prefix, name))
        labels.append(label)
    if are_present(key, names, f'pictures that {path} lists', findings):
        check_pictures(key, names, findings)
    if not dataset.with_label:
        return None
    highest = max(range(len(labels)), key=lambda index: int(labels[index]))
    return int(labels[highest]), lines[highest]


def check_scores(key: str, evaluator: Any, count: int, findings: Findings) -> None:
    """Check that ``topk`` of a classifier's accuracy does not exceed the number of classes.

    Args:
        key: Key of the evaluator in the config.
        evaluator: One metric or several.
        count: Number of classes.
        findings: Collects the errors.
    """
    listed = isinstance(evaluator, (list, tuple))
    for index, metric in enumerate(evaluator if listed else [evaluator or {}]):
        topk = metric.get('topk', 1 if kind_of(metric) == 'Accuracy' else ())
        topk = (topk,) if isinstance(topk, int) else tuple(topk)
        metric_key = f'{key}.{index}' if listed else key
        if any(k > count for k in topk):
            findings.error(
                f'{metric_key}.topk={topk}, but there are {count} classes',
                {f'{metric_key}.topk': tuple(k for k in topk if k <= count) or (1,)},
            )
