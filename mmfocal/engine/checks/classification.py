# SPDX-License-Identifier: Apache-2.0
"""Checks of classifiers' data: class folders, lists, and settings that depend on the classes."""

import os
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset

from ..findings import Findings, first_few
from ..machine import kind_of
from .images import are_present, check_pictures, read_list

_SYSTEM_FOLDERS = ('__MACOSX', '@eaDir', 'lost+found', '$RECYCLE.BIN')


# ---- class folders -----------------------------------------------------------------------------


def check_class_folders(
    key: str, dataset: BaseDataset, pipeline: Any, findings: Findings
) -> dict[str, int] | None:
    """Check class folders of mmpretrain's ``CustomDataset``.

    Args:
        key: Key of the data set in the config.
        dataset: ``CustomDataset`` or a relative, not yet read.
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
    pictures = {name: _pictures(os.path.join(root, name), dataset) for name in folders}
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


def _pictures(folder: str, dataset: BaseDataset) -> list[str]:
    return [
        f'{place}/{name}'
        for place, _, names in sorted(os.walk(folder, followlinks=True))
        for name in sorted(names)
        if dataset.is_valid_file(name)
    ]


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


# ---- lists -------------------------------------------------------------------------------------


def check_image_list(
    key: str, dataset: BaseDataset, pipeline: Any, findings: Findings
) -> list[tuple[str, int]] | None:
    """Check an annotation file with lines ``path label`` in mmpretrain's format.

    Args:
        key: Key of the data set in the config.
        dataset: ``CustomDataset`` or a relative, not yet read.
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
    paths = [os.path.join(dataset.img_prefix, name) for name, _ in entries]
    if are_present(key, paths, f'images that {path} lists', findings):
        check_pictures(key, paths, pipeline, findings)
    return entries


# ---- settings ----------------------------------------------------------------------------------


def check_class_count(
    cfg: Config, split: str, classes: tuple[int, str], findings: Findings
) -> None:
    """Check ``num_classes`` of the preprocessor, which makes one-hot labels, and ``topk``.

    Args:
        cfg: Complete config.
        split: ``train``, ``val`` or ``test``.
        classes: Number of classes and the key and words that tell it.
        findings: Collects the errors.
    """
    number, source = classes
    model = cfg.get('model') or {}
    for key, settings in (
        ('data_preprocessor', cfg.get('data_preprocessor')),
        ('model.data_preprocessor', model.get('data_preprocessor')),
    ):
        count = (settings or {}).get('num_classes')
        if count is not None and count != number:
            findings.error(
                f'{key}.num_classes={count}, but {source}', {f'{key}.num_classes': number}
            )
    _check_scores(f'{split}_evaluator', cfg.get(f'{split}_evaluator'), number, findings)


def _check_scores(key: str, evaluator: Any, count: int, findings: Findings) -> None:
    """Check that ``topk`` of a classifier's accuracy does not exceed the number of classes."""
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
