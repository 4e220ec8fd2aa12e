# SPDX-License-Identifier: Apache-2.0
"""Checks of what the values of a config are: dicts, lists, text or numbers.

They come before all other checks, which rely on them.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, Registry

from mmfocal.errors import InputError

from .findings import Findings
from .machine import kind_of
from .options import nearest_type, registered

_SPLITS = ('train', 'val', 'test')
_LENGTH = 60  # of the values in messages


class _Shape(NamedTuple):
    """Requirement on a value.

    Attributes:
        words: Its description.
        fits: Whether a value is one.
    """

    words: str
    fits: Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    """Return whether a number counts something; MMEngine accepts 3600.0 too."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 < value < float('inf') and value == int(value)


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _are_ints(value: Any) -> bool:
    return isinstance(value, int) or (
        isinstance(value, (list, tuple)) and all(isinstance(each, int) for each in value)
    )


def _are_counts(value: Any) -> bool:
    values = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(each, int) and each > 0 for each in values)


def _are_dicts(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, (list, tuple)) and all(isinstance(each, dict) for each in value)
    )


_DICT = _Shape('a dict', lambda value: isinstance(value, dict))
_DICTS = _Shape('a dict or a list of dicts', _are_dicts)
_TEXT = _Shape('text', lambda value: isinstance(value, (str, os.PathLike)))
_COUNT = _Shape('a positive integer', _is_count)
_START = _Shape('an integer of at least 0', lambda value: _are_ints(value) and value >= 0)
_SEED = _Shape(
    'an integer from 0 to 4294967295', lambda value: _are_ints(value) and 0 <= value < 2**32
)
_TYPE = _Shape('the name of a data set', lambda value: isinstance(value, str) or callable(value))
_SOME = _Shape(
    'a list of at least one data set', lambda value: isinstance(value, (list, tuple)) and value
)
_INDICES = _Shape(
    'an integer other than 0, or a list of integers that is not empty',
    lambda value: bool(value) and _are_ints(value),
)
_TOPK = _Shape('a positive integer or a list of them', _are_counts)
_STEPS = _Shape(
    'a list of dicts',
    lambda value: isinstance(value, (list, tuple)) and not any(isinstance(x, str) for x in value),
)
# settings of MMEngine's runner that are all given or all absent
_TOGETHER = {
    'train': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    'val': ('val_dataloader', 'val_cfg', 'val_evaluator'),
    'test': ('test_dataloader', 'test_cfg', 'test_evaluator'),
}

_PARTS = {
    'model': _DICT,
    'model.backbone': _DICT,
    'model.roi_head': _DICT,
    'model.head': _DICT,
    **{f'model.{name}': _DICTS for name in ('neck', 'rpn_head', 'bbox_head', 'mask_head')},
    **{f'model.{name}': _DICTS for name in ('decode_head', 'auxiliary_head')},
    **{f'{split}_dataloader': _DICT for split in _SPLITS},
    **{f'{split}_evaluator': _DICTS for split in _SPLITS},
    **{f'{split}_cfg': _DICT for split in _SPLITS},
    'train_cfg.max_epochs': _COUNT,
    'train_cfg.max_iters': _COUNT,
    'train_cfg.val_interval': _COUNT,
    'optim_wrapper': _DICT,
    'default_hooks': _DICT,
    'custom_hooks': _STEPS,
    'optim_wrapper.optimizer': _DICT,
    'optim_wrapper.optimizer.lr': _Shape('a number of at least 0', _is_rate),
    'optim_wrapper.accumulative_counts': _COUNT,
    'train_cfg.val_begin': _START,
    'param_scheduler': _Shape(
        'a dict or a list', lambda value: isinstance(value, (dict, list, tuple))
    ),
    'randomness': _DICT,
    'randomness.seed': _SEED,
    'load_from': _TEXT,
    'work_dir': _TEXT,
}
_OF_DATA_SETS = {
    'data_root': _TEXT,
    'ann_file': _TEXT,
    'data_prefix': _Shape('text or a dict', lambda value: isinstance(value, (str, dict))),
    'metainfo': _DICT,
    'pipeline': _STEPS,
    'indices': _INDICES,
}


def metrics_of(cfg: Config, split: str) -> Iterator[tuple[str, dict]]:
    """Yield key and config of each metric of a split.

    Args:
        cfg: Complete config.
        split: ``train``, ``val`` or ``test``.
    """
    key, evaluator = f'{split}_evaluator', cfg.get(f'{split}_evaluator') or ()
    if isinstance(evaluator, dict) and 'metrics' in evaluator:  # an evaluator with its type
        key, evaluator = f'{key}.metrics', evaluator['metrics']
    if isinstance(evaluator, dict):
        yield key, evaluator
    else:
        yield from ((f'{key}.{index}', each) for index, each in enumerate(evaluator) if each)


def check_shape(cfg: Config) -> None:
    """Check that the parts of a config which other checks read are what they must be.

    Args:
        cfg: Complete config.

    Raises:
        InputError: If there are problems; names key, value and expected type of all of them.
    """
    problems = list(_problems(cfg))
    if problems:
        findings = Findings()
        for key, value, words in problems:
            text = repr(value)
            text = text if len(text) <= _LENGTH else f'{text[:_LENGTH]}...'
            findings.error(f'{key}={text}; expected {words}')
        findings.report()


def _problems(cfg: Config) -> Iterator[tuple[str, Any, str]]:
    """Yield key, value and what is expected instead."""
    for key, shape in _PARTS.items():
        *path, name = key.split('.')
        node: Any = cfg
        for parent in path:
            node = node.get(parent)
            if not isinstance(node, dict):
                break
        else:
            yield from _misfit(key, node.get(name), shape)
    for split in _SPLITS:
        loader = cfg.get(f'{split}_dataloader')
        if isinstance(loader, dict):
            yield from _problems_of_data_set(f'{split}_dataloader.dataset', loader.get('dataset'))
        if _are_dicts(cfg.get(f'{split}_evaluator')):
            for key, metric in metrics_of(cfg, split):
                yield from _misfit(f'{key}.topk', metric.get('topk'), _TOPK)


def _misfit(key: str, value: Any, shape: _Shape) -> Iterator[tuple[str, Any, str]]:
    """Yield a value that is given and does not fit."""
    if value is not None and not shape.fits(value):
        yield key, value, shape.words


def _problems_of_data_set(key: str, dataset: Any) -> Iterator[tuple[str, Any, str]]:
    if not isinstance(dataset, dict):
        yield key, dataset, 'a dict with the type of a data set'
        return
    if not _TYPE.fits(dataset.get('type')):
        yield f'{key}.type', dataset.get('type'), _TYPE.words
    if 'dataset' in dataset:
        if kind_of(dataset) == 'RepeatDataset':
            yield from _misfit(f'{key}.times', dataset.get('times'), _COUNT)
        yield from _problems_of_data_set(f'{key}.dataset', dataset['dataset'])
    elif 'datasets' in dataset:
        if not _SOME.fits(dataset['datasets']):
            yield f'{key}.datasets', dataset['datasets'], _SOME.words
            return
        for index, part in enumerate(dataset['datasets']):
            yield from _problems_of_data_set(f'{key}.datasets.{index}', part)
    else:
        for name, shape in _OF_DATA_SETS.items():
            yield from _misfit(f'{key}.{name}', dataset.get(name), shape)
        prefix = dataset.get('data_prefix')
        for name, folder in prefix.items() if isinstance(prefix, dict) else ():
            yield from _misfit(f'{key}.data_prefix.{name}', folder or None, _TEXT)


def check_complete(cfg: Config, split: str) -> None:
    """Check that a split has all of its settings, and the config a model.

    Args:
        cfg: Complete config.
        split: ``train``, ``val`` or ``test``. Only a validation may be absent.

    Raises:
        InputError: If settings are missing; names them.
    """
    names = _TOGETHER[split] if split == 'val' else ('model', *_TOGETHER[split])
    absent = [name for name in names if cfg.get(name) is None]
    if split == 'val' and len(absent) == len(names):
        return
    if absent:
        rest = ', or none of them for no validation' if split == 'val' else ''
        raise InputError(
            f'{cfg.filename} has no {", ".join(absent)}; expected {", ".join(names)}{rest}'
        )


# ---- registered types --------------------------------------------------------------------------


def check_type(key: str, kind: Any, owner: Registry = MODELS, scope: str | None = None) -> None:
    """Check that a type is not a misspelled name of a registered one.

    MMEngine reports other unknown types; hosts leave out those whose requirements are missing.

    Args:
        key: Key of the part in the config.
        kind: Its type; only text is looked up.
        owner: MMEngine's registry.
        scope: ``default_scope``; None for the present one.

    Raises:
        InputError: If there is no such type, but a similar one.
    """
    if not isinstance(kind, str) or registered(owner, kind, scope) is not None:
        return
    with owner.switch_scope_and_registry(scope) as registry:
        near = nearest_type(kind, registry)
    if near:
        raise InputError(f'{key}.type={kind!r} is not registered; did you mean {near}?')


def check_data_type(key: str, dataset: dict, scope: str | None, findings: Findings) -> bool:
    """Check the type of a data set by ``check_type``.

    Args:
        key: Its key in the config.
        dataset: Its config.
        scope: ``default_scope``.
        findings: Collects the error.

    Returns:
        Whether there is no error.
    """
    try:
        check_type(key, dataset['type'], DATASETS, scope)
    except InputError as error:
        findings.error(str(error))
        return False
    return True
