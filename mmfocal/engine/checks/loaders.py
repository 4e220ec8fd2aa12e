# SPDX-License-Identifier: Apache-2.0
"""Checks of data loaders: their numbers, and a last batch of a single image."""

import math

from mmengine.config import Config

from ..findings import Findings
from ..machine import kind_of, world_size
from .model import check_single_image


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
    if 'indices' in dataset:
        return None
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
    return sizes.get(key)
