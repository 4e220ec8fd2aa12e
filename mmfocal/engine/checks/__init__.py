# SPDX-License-Identifier: Apache-2.0
"""Check a run's input before it starts, and report all problems together."""

import os
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope

from mmfocal.errors import MissingFileError

from ..config_shape import check_data_type, check_shape
from ..findings import Findings, first_few
from ..machine import dicts_in, is_first_process, kind_of
from ..sharding import is_sharded
from .coco import (
    CocoFile,
    check_coco,
    check_evaluator,
    coco_metrics,
    difference,
    without_garbage_collection,
)
from .images import (
    check_class_folders,
    check_image_list,
    check_label_maps,
    has_file,
    has_files,
    is_remote,
)
from .settings import (
    check_batches,
    check_class_count,
    check_labels,
    check_loader,
    check_metrics,
    check_monitors,
    check_num_classes,
    check_schedule,
    check_topk,
    check_widths,
)

__all__ = ['check_checkpoint', 'check_inputs', 'check_run', 'check_shape', 'check_widths']

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

# source and classes of the config's first data set, once they are known; one list for all splits
References = list[tuple[str, list[str]]]


def check_checkpoint(path: str) -> None:
    """Check that a checkpoint given on the command line exists.

    Args:
        path: Local file, folder of a sharded checkpoint, or an address such as ``https://...``,
            which is not checked.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not (is_remote(path) or Path(path).expanduser().is_file() or is_sharded(path)):
        raise MissingFileError(f'checkpoint {path} does not exist')


def check_run(cfg: Config, splits: Iterable[str] = ('train', 'val')) -> None:
    """Check the model, the schedule and the data of a config.

    Args:
        cfg: Complete config.
        splits: Which of ``train``, ``val`` and ``test`` will be used.

    Raises:
        InputError: If there are problems; names all of them.
    """
    check_shape(cfg)
    findings = Findings()
    try:
        check_widths(cfg)
    except ValueError as error:
        findings.error(str(error))
    check_schedule(cfg, findings)
    check_monitors(cfg, findings)
    _check_data(cfg, splits, findings)
    findings.report()


def check_inputs(cfg: Config, splits: Iterable[str] = ('train', 'val')) -> None:
    """Check the data of a config: folders, annotation files and their content.

    Only the first process of a launcher checks. Annotation files are read completely. At most
    40,000 masks per file for training are checked. At most 50 images and 50 label maps per data
    set are opened.

    Args:
        cfg: Config with ``{split}_dataloader`` and ``{split}_evaluator``. A split whose
            dataloader is None is skipped.
        splits: Which of ``train``, ``val`` and ``test`` will be used.

    Raises:
        InputError: If data is missing or inconsistent; names key, file, entry, value and expected
            value, and how to get missing data.
    """
    check_shape(cfg)
    findings = Findings()
    _check_data(cfg, splits, findings)
    findings.report()


def _check_data(cfg: Config, splits: Iterable[str], findings: Findings) -> None:
    if is_first_process(cfg.get('launcher', 'none')):
        splits = tuple(splits)
        with without_garbage_collection():
            references: References = []
            _check_splits(cfg, splits, references, findings)
            if findings.lines and 'test' not in splits:
                _add_lines_for_test(cfg, references, findings)


def _add_lines_for_test(cfg: Config, references: References, findings: Findings) -> None:
    """Add the lines that the test set needs too, so that they need no run of their own."""
    unread = Findings(quiet=True)
    _check_splits(cfg, ['test'], references, unread)
    findings.lines.update(
        {key: value for key, value in unread.lines.items() if key.startswith('test_')}
    )


def _check_splits(
    cfg: Config, splits: Iterable[str], references: References, findings: Findings
) -> None:
    classes: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    most: dict[str, int] = {}  # filters of COCO's data sets leave out some images
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        check_loader(f'{split}_dataloader', loader, findings)
        check_metrics(cfg, split, findings)
        coco_files: list[CocoFile] = []
        for key, dataset in leaf_datasets(f'{split}_dataloader.dataset', loader.dataset):
            is_known = check_data_type(key, dataset, cfg.get('default_scope'), findings)
            check_labels(cfg, split, key, dataset, findings)
            part = _Part(cfg, split, key, dataset, references, findings)
            if is_known:
                part.check_fixed_classes()
            if kind_of(dataset) in _DOWNLOADED or not _are_there(key, dataset, findings):
                continue
            if not is_known:
                continue
            found = part.check(coco_files)
            if found:
                classes[key] = found
            if part.size is not None:
                sizes[key] = part.size
        most.update({file.dataset_key: len(file.content['images']) for file in coco_files})
        check_evaluator(cfg, split, coco_files, findings)
    _compare_folders(classes, findings)
    check_batches(cfg, sizes, most, findings)


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
        self,
        cfg: Config,
        split: str,
        key: str,
        dataset: dict,
        references: References,
        findings: Findings,
    ) -> None:
        self.cfg, self.split, self.key, self.findings = cfg, split, key, findings
        self.dataset, self.references = dataset, references
        model = cfg.get('model') or {}
        self.model = model.get('module', model)  # --tta has wrapped it
        self.size: int | None = None  # number of images, where it is known

    def check(self, coco_files: list[CocoFile]) -> list[str] | None:
        """Check the files of data sets of known types; files of subclasses may differ.

        Args:
            coco_files: The COCO file that was read is added here.

        Returns:
            Names of the class folders if these define the classes.
        """
        kind = self.dataset.get('type')
        scope = self.cfg.get('default_scope')
        is_coco = kind in ('CocoDataset', 'mmdet.CocoDataset')
        has_label_maps = 'seg_map_path' in (self.dataset.get('data_prefix') or {})
        has_folders = kind_of(self.dataset) in _CLASS_FOLDERS and self._is_of_mmpretrain()
        paths = (self.dataset.get('data_root') or '', self.dataset.get('ann_file') or '')
        if any(map(is_remote, paths)) or not (is_coco or has_label_maps or has_folders):
            return None
        built = None if self._are_classes_text(is_coco) else self._build(scope)
        if built is None:
            return None
        if is_coco:
            self._check_coco(built, coco_files)
        elif has_label_maps:
            self._check_classes(built.metainfo.get('classes'))
            self._compare_classes(list(built.metainfo.get('classes') or ()))
            pipeline, hint = self.dataset.get('pipeline'), _how_to_get(self.dataset)
            self.size = check_label_maps(self.key, built, pipeline, hint, self.findings)
        else:
            return self._check_folders(built)
        return None

    def check_fixed_classes(self) -> None:
        """Compare the head with a data set of mmpretrain whose classes need no files."""
        if kind_of(self.dataset) in _CLASS_FOLDERS or not self._is_of_mmpretrain():
            return
        with DATASETS.switch_scope_and_registry('mmpretrain') as registry:
            kind = registry.get(self.dataset['type'])
        classes = (self.dataset.get('metainfo') or {}).get('classes')
        classes = classes or getattr(kind, 'METAINFO', {}).get('classes')
        if classes and not isinstance(classes, str):
            self._check_classes(classes)
            self._check_count(len(classes), f'{self.key} has {len(classes)} classes')

    def _is_of_mmpretrain(self) -> bool:
        kind = str(self.dataset.get('type'))
        scope = kind.split('.')[0] if '.' in kind else self.cfg.get('default_scope')
        return scope == 'mmpretrain'

    def _are_classes_text(self, is_coco: bool) -> bool:
        """Report text as classes; its letters would be taken for classes."""
        classes = (self.dataset.get('metainfo') or {}).get('classes')
        # MMEngine reads the names from a file; _check_categories knows those of COCO
        if is_coco or not isinstance(classes, str) or os.path.isfile(classes):
            return False
        self.findings.error(
            f'{self.key}.metainfo.classes={classes!r} is text; expected a tuple of names, '
            f"which has a comma even with one: ('{classes}',)"
        )
        return True

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

    def _compare_classes(self, classes: list[str]) -> None:
        """Compare classes of segmentation, whose order defines the labels, with the first ones."""
        key = f'{self.key}.metainfo.classes'
        if classes and not self.references:
            self.references.append((key, classes))
        elif classes and classes != self.references[0][1]:
            first, expected = self.references[0]
            self.findings.error(
                f'{key} differs from {first}: {difference(classes, expected)}. Labels are '
                'numbered in this order'
            )

    def _check_coco(self, built: BaseDataset, coco_files: list[CocoFile]) -> None:
        metrics = [
            each for each in coco_metrics(self.cfg, self.split) if each.reads(built.ann_file)
        ]
        loaders = [
            step
            for step in dicts_in(self.dataset.get('pipeline'))
            if kind_of(step) == 'LoadAnnotations'
        ]
        file = CocoFile(
            key=f'{self.key}.ann_file',
            path=built.ann_file,
            findings=self.findings,
            masks=any(step.get('with_mask') for step in loaders)
            if self.split == 'train'
            else any(metric.masks for metric in metrics),
            scored=bool(metrics),
            pipeline=self.dataset.get('pipeline'),
            may_lack_annotations=self.split == 'test',
            reference=self.references[0] if self.references else None,
        )
        classes = check_coco(file, built, self.model)
        if file.content:
            coco_files.append(file)
        if classes and not self.references:
            self.references.append((file.path, classes))
        self._check_classes(classes or built.metainfo.get('classes'))

    def _check_folders(self, built: BaseDataset) -> list[str] | None:
        pipeline = self.dataset.get('pipeline')
        if built.ann_file:
            entries = check_image_list(self.key, built, pipeline, self.findings)
            self.size = len(entries) if entries else None
            self._check_list(built, entries)
            return None
        counts = check_class_folders(self.key, built, pipeline, self.findings)
        if not counts:
            return None
        self.size = sum(counts.values())
        self._check_classes(list(counts))
        self._check_count(len(counts), f'{self.key} has {len(counts)} class folders')
        return list(counts)

    def _check_list(self, built: BaseDataset, entries: list[tuple[str, int]] | None) -> None:
        """Compare a list's highest label with the number of classes, if known."""
        classes = built.metainfo.get('classes')
        self._check_classes(classes)
        head = self.model.get('head') or {}
        count = len(classes) if classes else head.get('num_classes')
        if not isinstance(count, int) or not built.with_label:
            return
        source = f'model.head.num_classes={count}'
        if classes:
            source = f'{self.key}.metainfo has {count} classes'
        name, label = max(entries or [('', 0)], key=itemgetter(1))
        if label >= count:
            line = f'{name} {label}'
            self.findings.error(
                f'{self.key}.ann_file: line {line!r} of {built.ann_file} has label {label}, but '
                f'{source}; expected labels from 0 to {count - 1}'
            )
        self._check_count(count, source)

    def _check_count(self, number: int, source: str) -> None:
        check_class_count(self.cfg, (number, source), self.findings)
        check_topk(self.cfg, self.split, number, self.findings)


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
                'Expected the same folders; the folder of a class without images may be empty'
            )


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
