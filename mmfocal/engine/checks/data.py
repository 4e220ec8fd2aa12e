# SPDX-License-Identifier: Apache-2.0
"""Find missing or unfitting data before a model is built, and say how to get it."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope

from ..machine import RANK_VARIABLES
from .classes import check_num_classes
from .coco import check_coco
from .files import is_remote, join, require_file, require_folder
from .label_maps import check_label_maps

_LAYOUTS = {
    'CocoDataset': (
        'COCO 2017 (https://cocodataset.org/#download) is expected as\n'
        '  data/coco/{train2017,val2017}/*.jpg\n'
        '  data/coco/annotations/instances_{train2017,val2017}.json\n'
        '  data/coco/stuffthingmaps/{train2017,val2017}/*.png for HTC++ only '
        '(https://github.com/nightrome/cocostuff)'
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
    'ImageNet21k': (
        'ImageNet-22K (fall 2011, https://image-net.org/download) is expected as\n'
        '  data/imagenet21k/train/<class>/*.JPEG'
    ),
}
_DIGIT_SCENES = 'Digit scenes are made in seconds: python tools/data/make_digit_scenes.py'
_DOWNLOADED = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')  # mmpretrain does so itself
_ELSEWHERE = (
    'Data that lies elsewhere: a link, or --cfg-options {key}=/path/to/data, which every '
    'dataloader and the ann_file of val_evaluator need likewise.'
)


def check_inputs(cfg: Config, splits: Iterable[str] = ('train', 'val')) -> None:
    """Check the data that a config names: folders, annotation files and what they hold.

    Only the first process of a launcher looks: reading COCO's training set takes about 10 s.

    Args:
        cfg: Config with ``{split}_dataloader`` and ``{split}_evaluator``; None skips it.
        splits: Which of ``train``, ``val`` and ``test`` are about to be used.

    Raises:
        FileNotFoundError: If something is missing; names key, path, and how to get the data.
        ValueError: If annotations contradict each other, the data set or the model; names key,
            file and value.
    """
    if not _is_first_process(cfg.get('launcher', 'none')):
        return
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        for key, dataset in _leaf_datasets(f'{split}_dataloader.dataset', loader.dataset):
            if _kind(dataset) not in _DOWNLOADED:
                _check_places(key, dataset)
                _check_content(cfg, split, key, dataset)
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


def _check_places(key: str, dataset: dict) -> None:
    """Look for the root, the folders and the annotation file."""
    hint = _how_to_get(dataset)
    root = dataset.get('data_root') or ''
    if root:
        elsewhere = _ELSEWHERE.format(key=f'{key}.data_root')
        require_folder(f'{key}.data_root', root, f'{hint}\n{elsewhere}')
    for name, folder in _folders(dataset).items():
        require_folder(f'{key}.{name}', join(root, folder), hint)
    if dataset.get('ann_file'):
        require_file(f'{key}.ann_file', join(root, dataset['ann_file']), hint)


def _check_content(cfg: Config, split: str, key: str, dataset: dict) -> None:
    """Look into COCO files and label maps; relatives of them have contents of their own kind."""
    is_coco = dataset.get('type') in ('CocoDataset', 'mmdet.CocoDataset')
    has_label_maps = 'seg_map_path' in (dataset.get('data_prefix') or {})
    paths = (dataset.get('data_root') or '', dataset.get('ann_file') or '')
    if any(map(is_remote, paths)) or not (is_coco or has_label_maps):
        return
    model = cfg.get('model') or {}
    model = model.get('module', model)  # --tta has wrapped it
    built = _build(cfg.default_scope, dataset)
    check_num_classes(model, f'{key}.metainfo', built.metainfo.get('classes'))
    if is_coco:
        check_coco(key, built, model, is_test=split == 'test')
    else:
        check_label_maps(key, built, dataset.get('pipeline'), _how_to_get(dataset))


def _build(scope: str, dataset: dict) -> BaseDataset:
    """Build a data set that has read nothing yet, for its classes, suffixes and joined paths."""
    with DefaultScope.overwrite_default_scope(scope):
        return DATASETS.build(
            {**dataset, 'pipeline': [], 'lazy_init': True, 'serialize_data': False}
        )


def _check_evaluator(key: str, evaluator: Any) -> None:
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        if metric and metric.get('ann_file'):
            hint = "It is usually the data set's own."
            require_file(f'{key}.ann_file', metric['ann_file'], hint)


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
