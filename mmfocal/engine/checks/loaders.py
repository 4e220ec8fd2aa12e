# SPDX-License-Identifier: Apache-2.0
"""Checks of data loaders: their numbers, their first and last batch, and labels to evaluate."""

import math

from mmengine.config import Config

from ..findings import Findings
from ..machine import dicts_in, kind_of, world_size
from .settings import check_single_image

# mmpretrain's metrics that compare with the class of an image
_OF_CLASSES = ('Accuracy', 'SingleLabelMetric', 'MultiLabelMetric', 'ConfusionMatrix')
_OF_CLASSES += ('AveragePrecision',)


def check_loader(key: str, loader: dict, findings: Findings) -> None:
    """Check the numbers of a data loader.

    Args:
        key: Key of the loader in the config.
        loader: Its config.
        findings: Collects the errors.
    """
    for name, least in (('batch_size', 1), ('num_workers', 0)):
        value = loader.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            findings.error(f'{key}.{name}={value!r}; expected an integer of at least {least}')


def check_first_batch(cfg: Config, sizes: dict[str, int], findings: Findings) -> None:
    """Check that an epoch has at least one batch; MMEngine would end without a step.

    Args:
        cfg: Complete config.
        sizes: Largest possible number of images by key of each data set, as far as known.
        findings: Collects the error.
    """
    loader = cfg.get('train_dataloader') or {}
    batch, sampler = loader.get('batch_size'), loader.get('sampler') or {}
    ends = isinstance(sampler, dict) and kind_of(sampler) == 'DefaultSampler'
    if not ends or not loader.get('drop_last') or not isinstance(batch, int):
        return
    total = _length('train_dataloader.dataset', loader['dataset'], sizes)
    processes = world_size(cfg.get('launcher', 'none'))
    if total is not None and math.ceil(total / processes) < batch:
        findings.error(
            f'train_dataloader.drop_last=True leaves no batch of {total} images '
            f'(batch_size={batch}, {processes} process{"es" if processes > 1 else ""}); expected '
            'a smaller batch_size or drop_last=False'
        )


def check_last_batch(cfg: Config, sizes: dict[str, int], findings: Findings) -> None:
    """Check that a last batch of one image does not stop the training at the end of an epoch.

    Args:
        cfg: Complete config.
        sizes: Number of images by key of each data set, as far as known.
        findings: Collects the error.
    """
    loader = cfg.get('train_dataloader') or {}
    batch = loader.get('batch_size')
    sampler = loader.get('sampler') or {}
    ends = isinstance(sampler, dict) and kind_of(sampler) == 'DefaultSampler'
    if not ends or loader.get('drop_last') or not isinstance(batch, int) or batch < 2:
        return
    total = _length('train_dataloader.dataset', loader['dataset'], sizes)
    processes = world_size(cfg.get('launcher', 'none'))
    if total is None or math.ceil(total / processes) % batch != 1:
        return
    try:
        check_single_image(
            cfg,
            f'train_dataloader.drop_last=False leaves a last batch of 1 of {total} images '
            f'(batch_size={batch}, {processes} process{"es" if processes > 1 else ""})',
        )
    except ValueError as error:
        findings.error(str(error), {'train_dataloader.drop_last': True})


def _length(key: str, dataset: dict, sizes: dict[str, int]) -> int | None:
    """Return the length of a data set, None if it is unknown."""
    kind = kind_of(dataset)
    if kind == 'ConcatDataset':
        lengths = [
            _length(f'{key}.datasets.{index}', part, sizes)
            for index, part in enumerate(dataset['datasets'])
        ]
        return None if None in lengths else sum(filter(None, lengths))
    if kind == 'RepeatDataset':
        length = _length(f'{key}.dataset', dataset['dataset'], sizes)
        return length and length * dataset['times']
    indices, length = dataset.get('indices'), sizes.get(key)
    if indices is None or length is None:
        return length
    return min(length, abs(indices) if isinstance(indices, int) else len(indices))


# ---- labels of evaluated data ------------------------------------------------------------------


def check_labels(cfg: Config, split: str, key: str, dataset: dict, findings: Findings) -> None:
    """Check that data which is evaluated is read with its labels.

    Args:
        cfg: Complete config.
        split: ``train``, which is not checked, ``val`` or ``test``.
        key: Key of a data set in the config.
        dataset: Its config.
        findings: Collects the errors.
    """
    metrics = cfg.get(f'{split}_evaluator') or ()
    metrics = [metrics] if isinstance(metrics, dict) else metrics
    kinds = {kind_of(each) for each in metrics if not each.get('format_only')}
    name, lack = next((kind for kind in _OF_CLASSES if kind in kinds), None), ''
    if name and cfg.get('default_scope') == 'mmpretrain' and not dataset.get('with_label', True):
        lack = 'with_label=False; expected with_label=True'
    elif 'IoUMetric' in kinds and not loads_annotations(dataset):
        name, lack = 'IoUMetric', 'pipeline has no LoadAnnotations; expected this step'
    if lack and split != 'train':
        findings.error(
            f'{key}.{lack}, because {split}_evaluator ({name}) compares with labels'
            + ', or no validation: val_dataloader, val_cfg and val_evaluator None'
            * (split == 'val')
        )


def loads_annotations(dataset: dict) -> bool:
    """Return whether a data set has no pipeline of its own, or one that loads annotations.

    Args:
        dataset: Its config.
    """
    steps = dataset.get('pipeline')
    return steps is None or any('Annotation' in kind_of(step) for step in dicts_in(steps))
