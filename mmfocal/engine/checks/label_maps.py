# SPDX-License-Identifier: Apache-2.0
"""Checks of label maps."""

import inspect
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from PIL import Image

from ..findings import Findings, first_few
from ..machine import dicts_in, kind_of
from .pictures import (
    PICTURES,
    SAMPLE,
    are_present,
    check_pictures,
    missing_files,
    picture_size,
    sample,
)

IGNORED = 255  # ignored by the hosts' losses and metrics


def check_label_maps(
    key: str, dataset: BaseDataset, pipeline: Any, hint: str, findings: Findings
) -> None:
    """Check the label maps of a segmentation data set; a sample of up to 50 is opened.

    Args:
        key: Key of the data set in the config.
        dataset: A ``BaseSegDataset`` of mmseg before it reads files.
        pipeline: Its transforms; labels that they do not load are not checked.
        hint: How to get the data.
        findings: Collects the errors.
    """
    loaders = [step for step in dicts_in(pipeline) if kind_of(step) == 'LoadAnnotations']
    dataset.full_init()
    if len(dataset) == 0:
        findings.error(
            f'{key}.data_prefix.img_path: no file in {dataset.data_prefix["img_path"]} ends in '
            f'{dataset.img_suffix!r} (img_suffix)\n{hint}'
        )
        return
    entries = [dataset.get_data_info(index) for index in range(len(dataset))]
    images = [entry['img_path'] for entry in entries]
    image_key = f'{key}.data_prefix.img_path'
    if not are_present(image_key, images, 'images', findings):
        return
    check_pictures(image_key, images, findings)
    if not loaders:
        return
    _check_agreement(key, dataset.reduce_zero_label, loaders, findings)
    label_key = f'{key}.data_prefix.seg_map_path'
    maps = [entry['seg_map_path'] for entry in entries]
    _check_suffixes(image_key, dataset, findings)
    if are_present(label_key, maps, 'label maps', findings):
        _check_sizes(label_key, images, maps, findings)
        _check_labels(label_key, dataset, maps, findings)


def check_values(
    key: str,
    paths: Sequence[str],
    highest: int,
    ignored: set[int],
    note: str,
    findings: Findings,
) -> list[set[int]]:
    """Open a sample of label maps and check their values.

    Args:
        key: Key of their folder in the config.
        paths: The files.
        highest: Highest label.
        ignored: Higher values that mean no label.
        note: Source of the highest label.
        findings: Collects an error if a file is not a label map or has another value.

    Returns:
        The values in each map of the sample; empty if there was an error.
    """
    found = []
    for path in sample(paths):
        try:
            labels = np.asarray(Image.open(path))
        except (OSError, SyntaxError) as error:
            findings.error(f'{key}: {path} cannot be read: {error}')
            return []
        if labels.ndim != 2:
            findings.error(
                f'{key}: {path} has {labels.shape[2]} channels; expected one label per pixel'
            )
            return []
        found.append(set(np.unique(labels).tolist()))
        beyond = sorted(v for v in found[-1] - ignored if not 0 <= v <= highest)
        if beyond:
            findings.error(
                f'{key}: {path} has label {beyond[0]}; expected 0 to {highest}, or '
                f'{" or ".join(map(str, sorted(ignored)))} for none ({note})'
            )
            return []
    return found


def _check_agreement(key: str, reduces: bool, loaders: Sequence[dict], findings: Findings) -> None:
    """Check that two settings agree, as mmseg does at the first image."""
    for loader in loaders:
        own = loader.get('reduce_zero_label')
        if own is not None and own != reduces:
            findings.error(
                f'{key}.pipeline: LoadAnnotations has reduce_zero_label={own}, but {key} has '
                f'reduce_zero_label={reduces}'
            )


def _check_suffixes(key: str, dataset: BaseDataset, findings: Findings) -> None:
    """Report annotated images whose suffix differs from ``img_suffix``, which are unused."""
    folder, maps = dataset.data_prefix['img_path'], dataset.data_prefix['seg_map_path']
    if dataset.ann_file and os.path.isfile(dataset.ann_file):
        return  # a list selects the images
    used = dataset.img_suffix
    others = []
    for place, _, names in os.walk(folder, followlinks=True):
        below = os.path.relpath(place, folder)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in PICTURES and not name.endswith(used):
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


def _check_sizes(key: str, images: Sequence[str], maps: Sequence[str], findings: Findings) -> None:
    for image, labels in sample(list(zip(images, maps, strict=True))):
        try:
            image_size, label_size = picture_size(image), Image.open(labels).size
        except (OSError, SyntaxError):  # reported by another check
            continue
        if image_size and image_size != label_size:
            findings.error(
                f'{key}: {labels} has {_by(label_size)} pixels, but its image {image} has '
                f'{_by(image_size)}; expected the same size'
            )
            return


def _by(size: tuple[int, int]) -> str:
    return f'{size[0]} x {size[1]}'


def _check_labels(
    key: str, dataset: BaseDataset, paths: Sequence[str], findings: Findings
) -> None:
    reduces = dataset.reduce_zero_label
    # a subset of the classes is mapped from all labels
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
