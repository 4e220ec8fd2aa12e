# SPDX-License-Identifier: Apache-2.0
"""Check a run's input before it starts, and report all problems together."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope

from mmfocal.errors import MissingFileError

from ..findings import Findings, first_few
from ..machine import dicts_in, is_first_process, kind_of
from ..sharding import is_sharded
from .coco import CocoFile, check_coco, check_scored_file, without_garbage_collection
from .images import (
    check_class_folders,
    check_image_list,
    check_label_maps,
    check_scores,
    has_file,
    has_files,
    is_remote,
)
from .model import check_num_classes, check_widths

__all__ = ['check_checkpoint', 'check_inputs', 'check_run', 'check_widths']

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
_DOWNLOADED = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')  # mmpretrain downloads these itself
_CLASS_FOLDERS = ('CustomDataset', 'ImageNet', 'ImageNet21k')
_ELSEWHERE = (
    'If the data is elsewhere, link it, or pass --cfg-options {key}=PATH for each dataloader and '
    'for val_evaluator.ann_file.'
)


def check_checkpoint(path: str) -> None:
    """Check that a checkpoint given on the command line exists.

    Args:
        path: Local file, folder of a sharded one, or an address such as ``https://...``, which is
            not checked.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not (is_remote(path) or Path(path).expanduser().is_file() or is_sharded(path)):
        raise MissingFileError(f'checkpoint {path} does not exist')


def check_run(cfg: Config, splits: Iterable[str] = ('train', 'val')) -> None:
    """Check the model and the data of a config.

    Args:
        cfg: Complete config.
        splits: Which of ``train``, ``val`` and ``test`` will be used.

    Raises:
        InputError: If there are problems; names all of them.
    """
    findings = Findings()
    try:
        check_widths(cfg)
    except ValueError as error:
        findings.error(str(error))
    _check_data(cfg, splits, findings)
    findings.report()


def check_inputs(cfg: Config, splits: Iterable[str] = ('train', 'val')) -> None:
    """Check the data of a config: folders, annotation files and their content.

    Only the first process of a launcher checks. Annotation files are read completely. At most
    100,000 polygons per file are checked. At most 50 images and 50 label maps per data set are
    opened.

    Args:
        cfg: Config with ``{split}_dataloader`` and ``{split}_evaluator``; None skips it.
        splits: Which of ``train``, ``val`` and ``test`` will be used.

    Raises:
        InputError: If data is missing or inconsistent; names key, file, entry, value and expected
            value, and how to get missing data.
    """
    findings = Findings()
    _check_data(cfg, splits, findings)
    findings.report()


def _check_data(cfg: Config, splits: Iterable[str], findings: Findings) -> None:
    if is_first_process(cfg.get('launcher', 'none')):
        with without_garbage_collection():
            _check_splits(cfg, splits, findings)


def _check_splits(cfg: Config, splits: Iterable[str], findings: Findings) -> None:
    classes: dict[str, list[str]] = {}
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        _check_loader(f'{split}_dataloader', loader, findings)
        coco_files: list[CocoFile] = []
        for key, dataset in leaf_datasets(f'{split}_dataloader.dataset', loader.dataset):
            if kind_of(dataset) in _DOWNLOADED or not _are_there(key, dataset, findings):
                continue
            part = _Part(cfg, split, key, dataset, findings)
            found = part.check(coco_files)
            if found:
                classes[key] = found
        _check_evaluator(cfg, split, coco_files, findings)
    _compare_folders(classes, findings)


def leaf_datasets(key: str, dataset: dict) -> Iterator[tuple[str, dict]]:
    """Unwrap wrappers such as RepeatDataset and ConcatDataset.

    Args:
        key: Key of the data set in the config.
        dataset: Its config.

    Yields:
        Key and config of each data set that reads files.
    """
    if 'dataset' in dataset:
        yield from leaf_datasets(f'{key}.dataset', dataset['dataset'])
    elif 'datasets' in dataset:
        for index, part in enumerate(dataset['datasets']):
            yield from leaf_datasets(f'{key}.datasets.{index}', part)
    else:
        yield key, dataset


def _check_loader(key: str, loader: dict, findings: Findings) -> None:
    """Check the numbers of a data loader."""
    for name, least in (('batch_size', 1), ('num_workers', 0)):
        value = loader.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            findings.error(f'{key}.{name}={value!r}; expected an integer of at least {least}')


def _are_there(key: str, dataset: dict, findings: Findings) -> bool:
    """Check that the root, the folders and the annotation file exist."""
    hint = _how_to_get(dataset)
    root = dataset.get('data_root') or ''
    if root:
        elsewhere = _ELSEWHERE.format(key=f'{key}.data_root')
        if not has_files(root, f'{hint}\n{elsewhere}', f'{key}.data_root', findings):
            return False
    good = True
    for name, folder in _folders(dataset).items():
        good &= has_files(_join(root, folder), hint, f'{key}.{name}', findings)
    if dataset.get('ann_file'):
        path = _join(root, dataset['ann_file'])
        good &= has_file(path, hint, f'{key}.ann_file', findings)
    return good


class _Part:
    """One data set of a config, whose files exist."""

    def __init__(
        self, cfg: Config, split: str, key: str, dataset: dict, findings: Findings
    ) -> None:
        self.cfg, self.split, self.key, self.findings = cfg, split, key, findings
        self.dataset = dataset
        model = cfg.get('model') or {}
        self.model = model.get('module', model)  # --tta has wrapped it

    def check(self, coco_files: list[CocoFile]) -> list[str] | None:
        """Check files of known data sets; subclasses may have other contents.

        Args:
            coco_files: The COCO file that was read is added here.

        Returns:
            Names of the class folders if these define the classes.
        """
        kind = self.dataset.get('type')
        scope = self.cfg.get('default_scope')
        is_coco = kind in ('CocoDataset', 'mmdet.CocoDataset')
        has_label_maps = 'seg_map_path' in (self.dataset.get('data_prefix') or {})
        has_folders = kind_of(self.dataset) in _CLASS_FOLDERS and 'mmpretrain' in (
            scope,
            str(kind).split('.')[0],
        )
        paths = (self.dataset.get('data_root') or '', self.dataset.get('ann_file') or '')
        if any(map(is_remote, paths)) or not (is_coco or has_label_maps or has_folders):
            return None
        built = self._build(scope)
        if built is None:
            return None
        if is_coco:
            self._check_coco(built, coco_files)
        elif has_label_maps:
            self._check_classes(built.metainfo.get('classes'))
            pipeline, hint = self.dataset.get('pipeline'), _how_to_get(self.dataset)
            check_label_maps(self.key, built, pipeline, hint, self.findings)
        else:
            return self._check_folders(built)
        return None

    def _build(self, scope: str) -> BaseDataset | None:
        """Build a data set without reading files, for its classes and joined paths."""
        settings = {**self.dataset, 'pipeline': [], 'lazy_init': True, 'serialize_data': False}
        with DefaultScope.overwrite_default_scope(scope):
            try:
                return DATASETS.build(settings)
            except (TypeError, ValueError, AssertionError, FileNotFoundError) as error:
                self.findings.error(f'{self.key} ({self.dataset["type"]}): {error}')
                return None

    def _check_classes(self, classes: Any) -> None:
        check_num_classes(self.model, f'{self.key}.metainfo', classes, self.findings)

    def _check_coco(self, built: BaseDataset, coco_files: list[CocoFile]) -> None:
        metrics = _coco_metrics(self.cfg, self.split)
        loaders = [
            step
            for step in dicts_in(self.dataset.get('pipeline'))
            if kind_of(step) == 'LoadAnnotations'
        ]
        is_scored = any(_same(path, built.ann_file) for path, _ in metrics)
        file = CocoFile(
            key=f'{self.key}.ann_file',
            path=built.ann_file,
            findings=self.findings,
            masks=any(step.get('with_mask') for step in loaders)
            if self.split == 'train'
            else any(masks for path, masks in metrics if _same(path, built.ann_file)),
            scored=is_scored,
            may_lack_annotations=self.split == 'test',
        )
        before = dict(self.findings.lines)
        classes = check_coco(file, built, self.model)
        self._repeat_for_test(before)
        if file.content:
            coco_files.append(file)
        self._check_classes(classes or built.metainfo.get('classes'))

    def _repeat_for_test(self, before: dict[str, Any]) -> None:
        """Repeat the config lines of the validation set for an equal test set."""
        val, test = (self.cfg.get(f'{split}_dataloader') for split in ('val', 'test'))
        if self.split != 'val' or not test or val.dataset != test.dataset:
            return
        for key in self.findings.lines.keys() - before.keys():
            if key.startswith('val_dataloader.'):
                value = self.findings.lines[key]
                self.findings.lines[f'test_{key.removeprefix("val_")}'] = value

    def _check_folders(self, built: BaseDataset) -> list[str] | None:
        classes = built.metainfo.get('classes')
        if isinstance(classes, str):
            self.findings.error(
                f'{self.key}.metainfo.classes={classes!r} is text; expected a tuple of names, '
                f"which has a comma even with one: ('{classes}',)"
            )
            return None
        if built.ann_file:
            found = check_image_list(self.key, built, self.findings)
            count = self.model.get('head', {}).get('num_classes')
            if found and count and found[0] >= count:
                self.findings.error(
                    f'{self.key}.ann_file: line {found[1]!r} of {built.ann_file} has label '
                    f'{found[0]}, but model.head.num_classes={count}; expected labels from 0 to '
                    f'{count - 1}'
                )
            self._check_classes(classes)
            return None
        folders = check_class_folders(self.key, built, self.findings)
        if folders:
            self._check_classes(folders)
            self._check_preprocessor(folders)
            check_scores(
                f'{self.split}_evaluator',
                self.cfg.get(f'{self.split}_evaluator'),
                len(folders),
                self.findings,
            )
        return folders

    def _check_preprocessor(self, folders: list[str]) -> None:
        """Check ``num_classes``, by which Mixup and CutMix make one-hot labels."""
        settings = self.cfg.get('data_preprocessor') or {}
        count = settings.get('num_classes')
        if count is not None and count != len(folders):
            self.findings.error(
                f'data_preprocessor.num_classes={count}, but {self.key} has {len(folders)} class '
                'folders',
                {'data_preprocessor.num_classes': len(folders)},
            )


def _compare_folders(classes: dict[str, list[str]], findings: Findings) -> None:
    """Compare class folders, whose sorted order defines the labels."""
    keys = list(classes)
    for key in keys[1:]:
        first, other = classes[keys[0]], classes[key]
        if first != other:
            lacking = sorted(set(first) - set(other))
            more = sorted(set(other) - set(first))
            findings.error(
                f'{key} has other class folders than {keys[0]}, which shifts the labels: '
                f'{first_few(lacking) or "none"} missing, {first_few(more) or "none"} additional. '
                'Expected the same folders; one without images may be empty'
            )


def _coco_metrics(cfg: Config, split: str) -> list[tuple[str | None, bool]]:
    """Return the files that COCO evaluation reads, and whether it scores masks."""
    evaluator = cfg.get(f'{split}_evaluator') or []
    found = []
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        if kind_of(metric) == 'CocoMetric' and not metric.get('format_only'):
            metrics = metric.get('metric', 'bbox')
            masks = 'segm' in ([metrics] if isinstance(metrics, str) else metrics)
            found.append((metric.get('ann_file'), masks))
    return found


def _check_evaluator(
    cfg: Config, split: str, coco_files: list[CocoFile], findings: Findings
) -> None:
    """Check the evaluator's files, including content that no data set reads."""
    key = f'{split}_evaluator'
    evaluator = cfg.get(key)
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        if metric and metric.get('ann_file'):
            has_file(
                metric['ann_file'],
                "It is usually the data set's own.",
                f'{key}.ann_file',
                findings,
            )
    for path, masks in _coco_metrics(cfg, split):
        other = path and os.path.isfile(path) and len(coco_files) == 1
        if other and not _same(path, coco_files[0].path):
            optional = split == 'test'
            file = CocoFile(f'{key}.ann_file', path, findings, masks, True, optional)
            check_scored_file(file, coco_files[0])


def _same(first: str | None, second: str) -> bool:
    return bool(first) and os.path.realpath(first) == os.path.realpath(second)


def _folders(dataset: dict) -> dict[str, str]:
    """Map config keys to folders below ``data_root``; ImageNet's may be its ``split``."""
    prefix = dataset.get('data_prefix') or {}
    if isinstance(prefix, str):
        return {'data_prefix': prefix}
    if not prefix and dataset.get('split') and kind_of(dataset) == 'ImageNet':
        return {'split': dataset['split']}
    return {f'data_prefix.{name}': folder for name, folder in prefix.items() if folder}


def _join(root: str, path: str) -> str:
    return path if is_remote(path) else os.path.join(root, path)


def _how_to_get(dataset: dict) -> str:
    if 'digit_scenes' in str(dataset.get('data_root')):
        return _DIGIT_SCENES
    kind = kind_of(dataset)
    return _LAYOUTS.get(kind, f"See the host library's documentation of {kind}.")
