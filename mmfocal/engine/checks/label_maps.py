# SPDX-License-Identifier: Apache-2.0
"""Are there label maps for all images, and do the values of a sample of them fit the classes?"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from PIL import Image

from ..machine import dicts_in
from .files import missing_files

IGNORED = 255  # what the hosts' losses and metrics leave out
SAMPLE = 50  # label maps that are opened, so that starting stays quick


def check_label_maps(key: str, dataset: BaseDataset, pipeline: Any, hint: str) -> None:
    """Check the label maps of a segmentation data set; up to 50, evenly spread, are opened.

    Args:
        key: Where the config has the data set.
        dataset: A ``BaseSegDataset`` of mmseg, not yet read.
        pipeline: Its transforms; labels that they do not load are not looked at.
        hint: How to get the data.

    Raises:
        FileNotFoundError: If there is no image, or if one has no label map.
        ValueError: If transforms contradict the data set about ``reduce_zero_label``, or if labels
            are beyond its classes.
    """
    loaders = [step for step in dicts_in(pipeline) if _is_loader(step)]
    dataset.full_init()
    if len(dataset) == 0:
        raise FileNotFoundError(
            f'{key}.data_prefix.img_path: no file in {dataset.data_prefix["img_path"]} ends in '
            f'{dataset.img_suffix!r} (img_suffix)\n{hint}'
        )
    if not loaders:
        return
    _check_agreement(key, dataset.reduce_zero_label, loaders)
    label_key = f'{key}.data_prefix.seg_map_path'
    paths = [dataset.get_data_info(i)['seg_map_path'] for i in range(len(dataset))]
    check_presence(label_key, paths)
    _check_range(label_key, dataset, paths)


def check_presence(key: str, paths: Sequence[str]) -> None:
    """Check that label maps exist.

    Args:
        key: Where the config names their folder.
        paths: The files.

    Raises:
        FileNotFoundError: If any is missing; names the first.
    """
    missing = list(missing_files(paths))
    if missing:
        raise FileNotFoundError(
            f'{key}: {len(missing)} of {len(paths)} label maps are missing, the first is '
            f'{missing[0]}'
        )


def check_values(
    key: str, paths: Sequence[str], highest: int, ignored: set[int], note: str
) -> set[int]:
    """Open some label maps and check their values.

    Args:
        key: Where the config names their folder.
        paths: The files.
        highest: Greatest label.
        ignored: Values beyond it that stand for no label.
        note: Where the greatest label comes from.

    Returns:
        All values that were found.

    Raises:
        ValueError: If a file is no map of one label per pixel, or has another value.
    """
    found = set()
    for index in np.linspace(0, len(paths) - 1, min(SAMPLE, len(paths))).astype(int):
        values = _values(key, paths[index])
        found |= values
        beyond = sorted(value for value in values - ignored if not 0 <= value <= highest)
        if beyond:
            raise ValueError(
                f'{key}: {paths[index]} has label {beyond[0]}; expected 0 to {highest}, or '
                f'{" or ".join(map(str, sorted(ignored)))} for none ({note})'
            )
    return found


def _is_loader(step: dict) -> bool:
    return str(step.get('type')).split('.')[-1] == 'LoadAnnotations'


def _values(key: str, path: str) -> set[int]:
    try:
        labels = np.asarray(Image.open(path))
    except OSError as error:
        raise ValueError(f'{key}: {path} cannot be read: {error}') from error
    if labels.ndim != 2:
        raise ValueError(
            f'{key}: {path} has {labels.shape[2]} channels; expected one label per pixel'
        )
    return set(np.unique(labels).tolist())


def _check_agreement(key: str, reduces: bool, loaders: Sequence[dict]) -> None:
    """Do what mmseg does at the first image: the two settings must be the same."""
    for loader in loaders:
        own = loader.get('reduce_zero_label')
        if own is not None and own != reduces:
            raise ValueError(
                f'{key}.pipeline: LoadAnnotations has reduce_zero_label={own}, but {key} has '
                f'reduce_zero_label={reduces}'
            )


def _check_range(key: str, dataset: BaseDataset, paths: Sequence[str]) -> None:
    reduces = dataset.reduce_zero_label
    # a choice of classes is mapped from the labels of all
    names = type(dataset).METAINFO if dataset.label_map else dataset.metainfo
    count = len(names['classes'])
    zero = 'no class' if reduces else 'the first class'
    found = check_values(
        key,
        paths,
        highest=count if reduces else count - 1,
        ignored={IGNORED, dataset.ignore_index},
        note=f'{count} classes, reduce_zero_label={reduces}: 0 is {zero}',
    )
    default = inspect.signature(type(dataset)).parameters.get('reduce_zero_label')
    if not default or not default.default:
        return
    counts_from_1 = f'{type(dataset).__name__} counts classes from 1'
    labels = f'the labels in {paths[0]} and others'
    if not reduces and IGNORED not in found:
        raise ValueError(
            f'{key}: reduce_zero_label=False, but {counts_from_1}, and {labels} are not reduced: '
            f'{IGNORED} never occurs'
        )
    if reduces and IGNORED in found and count not in found:
        raise ValueError(
            f'{key}: reduce_zero_label=True, and {counts_from_1}, but {labels} seem reduced '
            f'already: {IGNORED} occurs, {count} does not. Set reduce_zero_label=False in the '
            'data set and in LoadAnnotations'
        )
