# SPDX-License-Identifier: Apache-2.0
"""Find missing or unfitting data before a model is built, and say how to get it."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from .machine import RANK_VARIABLES

_LAYOUTS = {
    'CocoDataset': (
        'COCO 2017 (https://cocodataset.org/#download) is expected as\n'
        '  data/coco/{train2017,val2017}/*.jpg\n'
        '  data/coco/annotations/instances_{train2017,val2017}.json'
    ),
    'ADE20KDataset': (
        'ADE20K (ADEChallengeData2016.zip, http://sceneparsing.csail.mit.edu) is expected as\n'
        '  data/ade/ADEChallengeData2016/images/{training,validation}/*.jpg\n'
        '  data/ade/ADEChallengeData2016/annotations/{training,validation}/*.png'
    ),
    'ImageNet': (
        'ImageNet-1K (https://image-net.org/download) is expected as\n'
        '  data/imagenet/{train,val}/<class>/*.JPEG'
    ),
}
_COCO = 'mmdet.CocoDataset'
_DIGIT_SCENES = 'Digit scenes are made in seconds: python tools/data/make_digit_scenes.py'
_DOWNLOADED = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')  # mmpretrain does so itself
_ELSEWHERE = (
    'Data that lies elsewhere: a link, or --cfg-options {key}=/path/to/data, which every '
    'dataloader and the ann_file of val_evaluator need likewise.'
)


def check_checkpoint(path: str) -> None:
    """Check that a checkpoint given on the command line exists.

    Args:
        path: Local path, or an address such as ``https://...``, which is not looked up.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not _is_remote(path) and not Path(path).is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')


def check_inputs(cfg: Config, splits: Iterable[str] = ('train', 'val')) -> None:
    """Check the data that a config names: roots, annotation files, image folders, COCO categories.

    Only the first process of a launcher looks: reading COCO's training set takes about 10 s.

    Args:
        cfg: Config with ``{split}_dataloader`` and ``{split}_evaluator``; None skips it.
        splits: Which of ``train``, ``val`` and ``test`` are about to be used.

    Raises:
        FileNotFoundError: If something is missing; names key, path, and how to get the data.
        ValueError: If a COCO file's categories do not fit the classes that the data set has.
    """
    if not _is_first_process(cfg.get('launcher', 'none')):
        return
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        for key, dataset in _leaf_datasets(f'{split}_dataloader.dataset', loader.dataset):
            if _kind(dataset) not in _DOWNLOADED:
                _check_dataset(key, dataset, split)
        _check_evaluator(f'{split}_evaluator', cfg.get(f'{split}_evaluator'))


def _is_first_process(launcher: str) -> bool:
    """Ask the launcher's variables: MMEngine starts the process group only with the runner."""
    variable, *_ = RANK_VARIABLES.get(launcher, ('RANK',))
    return launcher == 'none' or int(os.environ.get(variable, 0)) == 0


def _leaf_datasets(key: str, dataset: dict) -> Iterator[tuple[str, dict]]:
    """Look through wrappers such as RepeatDataset and ConcatDataset."""
    if 'dataset' in dataset:
        yield from _leaf_datasets(f'{key}.dataset', dataset['dataset'])
    elif 'datasets' in dataset:
        for index, part in enumerate(dataset['datasets']):
            yield from _leaf_datasets(f'{key}.datasets.{index}', part)
    else:
        yield key, dataset


def _check_dataset(key: str, dataset: dict, split: str) -> None:
    hint = _how_to_get(dataset)
    root = dataset.get('data_root') or ''
    if root:
        elsewhere = _ELSEWHERE.format(key=f'{key}.data_root')
        _require(f'{key}.data_root', root, 'a folder', f'{hint}\n{elsewhere}')
    folders = _folders(dataset)
    for name, folder in folders.items():
        _require(f'{key}.{name}', _join(root, folder), 'a folder that is not empty', hint)
    ann_file = dataset.get('ann_file')
    if ann_file:
        path = _join(root, ann_file)
        _require(f'{key}.ann_file', path, 'a file', hint)
        # data sets derived from it have files and categories of their own kind
        if dataset.get('type') in ('CocoDataset', _COCO) and not _is_remote(path):
            image_dir = _join(root, folders.get('data_prefix.img', ''))
            parts = ('images', 'annotations', 'categories')
            if split == 'test':  # image_info_test-dev2017.json has no annotations
                parts = ('images', 'categories')
            _check_coco(f'{key}.ann_file', path, image_dir, dataset, parts)


def _check_evaluator(key: str, evaluator: Any) -> None:
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        if metric and metric.get('ann_file'):
            _require(
                f'{key}.ann_file',
                metric['ann_file'],
                'a file',
                "It is usually the data set's own.",
            )


def _folders(dataset: dict) -> dict[str, str]:
    """Map config keys to folders relative to ``data_root``; ImageNet's may be its ``split``."""
    prefix = dataset.get('data_prefix') or {}
    if isinstance(prefix, str):
        return {'data_prefix': prefix}
    if not prefix and dataset.get('split') and _kind(dataset) == 'ImageNet':
        return {'split': dataset['split']}
    return {f'data_prefix.{name}': folder for name, folder in prefix.items() if folder}


def _how_to_get(dataset: dict) -> str:
    if 'digit_scenes' in str(dataset.get('data_root')):
        return _DIGIT_SCENES
    kind = _kind(dataset)
    return _LAYOUTS.get(kind, f"See the host library's documentation of {kind}.")


def _kind(dataset: dict) -> str:
    return str(dataset.get('type')).split('.')[-1]


def _require(key: str, path: str, expected: str, hint: str) -> None:
    if _is_remote(path):
        return
    found = os.path.isfile(path) if expected == 'a file' else os.path.isdir(path)
    if found and 'not empty' in expected:
        found = any(os.scandir(path))
    if not found:
        raise FileNotFoundError(f'{key}: expected {expected} at {path}\n{hint}')


def _check_coco(
    key: str, path: str, image_dir: str, dataset: dict, parts: tuple[str, ...]
) -> None:
    with open(path, encoding='utf-8') as file:
        content = json.load(file)
    for part in parts:
        if part not in content:
            raise ValueError(f'{key}: {path} has no {part!r}; expected a COCO instance file')
    missing = list(_missing_files(image_dir, (image['file_name'] for image in content['images'])))
    if missing:
        raise FileNotFoundError(
            f'{key}: {len(missing)} of {len(content["images"])} images that {path} lists '
            f'are not in {image_dir}, the first is {missing[0]}'
        )
    _check_categories(key, path, [category['name'] for category in content['categories']], dataset)


def _missing_files(folder: str, names: Iterable[str]) -> Iterator[str]:
    """List each folder once, which is much quicker than a look-up per file on network disks."""
    listed: dict[Path, set[str]] = {}
    for name in names:
        path = Path(folder, name)
        if path.parent not in listed:
            listed[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
        if path.name not in listed[path.parent]:
            yield name


def _check_categories(key: str, path: str, names: list[str], dataset: dict) -> None:
    """Refuse what mmdet takes silently.

    It drops categories that are no classes, and numbers the others in the order of the file.
    """
    chosen = (dataset.get('metainfo') or {}).get('classes')
    classes = tuple(chosen or DATASETS.get(_COCO).METAINFO['classes'])
    absent = [name for name in classes if name not in names]
    if absent:
        raise ValueError(
            f'{key}: {path} has no category {absent[0]!r} (of {len(absent)}), found {names}'
        )
    unknown = [name for name in names if name not in classes]
    if unknown and chosen is None:
        raise ValueError(
            f'{key}: category {unknown[0]!r} (of {len(unknown)}) in {path} is not a class of '
            f'{dataset["type"]}; name yours in metainfo=dict(classes=(...)) of each split'
        )
    if unknown:
        print_log(f'{key}: categories not in metainfo.classes are left out: {unknown}')
    order = [name for name in names if name in classes]
    if order != list(classes):
        raise ValueError(
            f'{key}: classes must come in the order of {path}: {order}, got {list(classes)}'
        )


def _join(root: str, path: str) -> str:
    return path if _is_remote(path) else os.path.join(root, path)


def _is_remote(path: str) -> bool:
    return '://' in path
