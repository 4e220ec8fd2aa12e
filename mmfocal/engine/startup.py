# SPDX-License-Identifier: Apache-2.0
"""Errors of the hosts before the first iteration, which name the part of the config.

They are errors of the config: an unknown type or argument, or a value that a part does not accept.
Errors in other code, such as a user's own transform, keep their traceback.
"""

import copy
import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner

from mmfocal.errors import InputError

from .options import nearest_argument, nearest_type

_TASKS = ('mmdet', 'mmpretrain', 'mmseg')
_HOSTS = (*_TASKS, 'mmcv', 'mmengine', 'torch', 'torchvision')
_HOSTS += ('PIL', 'cv2', 'inspect', 'multiprocessing', 'numpy', 'pycocotools')  # they call these
_KINDS = (AssertionError, AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError)
_ARGUMENT = 'unexpected keyword argument '


@contextmanager
def explained(cfg: Config) -> Iterator[None]:
    """Turn errors of the hosts before a loop starts into one line with key and type of the part.

    Args:
        cfg: Config that is built.

    Raises:
        InputError: In place of such an error.
    """
    try:
        yield
    except InputError:
        raise
    except _KINDS as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        built = _since('build_from_cfg', frames)
        if any(map(_is_loop, frames)) or not all(map(_is_of_host, built or frames[-1:])):
            raise
        if not built and _ARGUMENT not in str(error):
            raise
        words = _of_part(cfg, built[0], error) if built else _words(error)
        raise InputError(f'{cfg.filename}: {words}' if cfg.filename else words) from error


def _since(function: str, frames: list[FrameType]) -> list[FrameType]:
    """Return the frames from the last call of a function on."""
    calls = [index for index, frame in enumerate(frames) if frame.f_code.co_name == function]
    return frames[calls[-1] :] if calls else []


def _is_of_host(frame: FrameType) -> bool:
    """Return whether a frame is in the code of a host, of MMEngine or of PyTorch."""
    return str(frame.f_globals.get('__name__')).split('.')[0] in _HOSTS


def _is_loop(frame: FrameType) -> bool:
    return frame.f_code.co_name == 'run' and isinstance(frame.f_locals.get('self'), BaseLoop)


def _words(error: Exception) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return f'{type(error).__name__}: {text}'


def _of_part(cfg: Config, frame: FrameType, error: Exception) -> str:
    """Describe an error in MMEngine's ``build_from_cfg``."""
    part, registry = frame.f_locals['cfg'], frame.f_locals['registry']
    if not isinstance(part, dict):
        return f'{_key_of_value(cfg, part)}={part!r}; expected a dict with a type'
    kind = part.get('type')
    key = _key_of(cfg, part)
    builder = frame.f_locals.get('obj_cls')
    if builder is None and isinstance(kind, str):
        near = nearest_type(kind, registry, 0.6)
        return f'{key}.type={kind!r} is not registered' + (
            f'; did you mean {near}?' if near else ''
        )
    name = getattr(builder, '__name__', kind)
    hint = nearest_argument(builder, error)
    return f'{key} ({name}) cannot be built: {_words(error)}{hint}'


def _key_of(cfg: Config, part: dict) -> str:
    """Find the key of a part, of which MMEngine may have made a copy with more entries."""
    places = list(_places('', dict(cfg)))
    same = [key for key, node in places if node == part]
    kin = [key for key, node in places if node.get('type') == part.get('type') is not None]
    return next(iter([*same, *kin]), 'a part')


def _key_of_value(cfg: Config, value: Any) -> str:
    return next(
        (
            f'{key}.{name}'
            for key, node in _places('', dict(cfg))
            for name, other in node.items()
            if other == value
        ),
        'a part',
    )


def _places(key: str, node: Any) -> Iterator[tuple[str, dict]]:
    if isinstance(node, dict):
        yield key, node
        children = node.items()
    else:
        children = enumerate(node)
    for name, child in children:
        if isinstance(child, (dict, list, tuple)):
            yield from _places(f'{key}.{name}' if key else str(name), child)


# ---- first samples -----------------------------------------------------------------------------


class LoadFirstSamples(Hook):
    """Load a sample for training and one for validation before the first iteration.

    A wrong pipeline of the validation would end a run after its first interval. Data sets that
    load samples in a way of their own are left out.
    """

    def before_train(self, runner: Runner) -> None:
        """Load the samples by copies of the pipelines, some of which collect images.

        Args:
            runner: The runner.

        Raises:
            InputError: If a transform of the hosts fails, or if none packs the inputs that a
                preprocessor of the hosts reads.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        preprocessor = type(getattr(model, 'data_preprocessor', None))
        is_packed = preprocessor.__module__.split('.')[0] in _TASKS
        for split, loop in dict(train=runner.train_loop, val=runner.val_loop).items():
            loader = getattr(loop, 'dataloader', None)
            if loader is not None:
                with _unchanged_random_numbers():
                    _load_first(f'{split}_dataloader', loader.dataset, is_packed)


def _load_first(key: str, dataset: Any, is_packed: bool) -> None:
    while type(dataset) in (ClassBalancedDataset, ConcatDataset, RepeatDataset):
        dataset = dataset.datasets[0] if type(dataset) is ConcatDataset else dataset.dataset
    if not _loads_by_pipeline(dataset):
        return
    try:
        pipeline = copy.deepcopy(dataset.pipeline)
    except Exception:  # a transform may hold files or locks
        return
    try:
        found = pipeline(dataset.get_data_info(0))
    except Exception as error:  # OpenCV and other libraries have their own
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if not all(map(_is_of_host, frames[1:])):
            raise
        name = _transform_of(error)
        raise InputError(f'{key}: {name} of the pipeline fails: {_words(error)}') from error
    names = [type(step).__name__ for step in pipeline.transforms]
    if is_packed and isinstance(found, dict) and not ('inputs' in found or 'Pack' in str(names)):
        raise InputError(
            f'{key}: no step of the pipeline {names} packs the inputs; expected PackDetInputs, '
            'PackSegInputs or PackInputs as the last step'
        )


def _loads_by_pipeline(dataset: Any) -> bool:
    """Return whether a data set has samples, which MMEngine's own methods load."""
    return (
        isinstance(dataset, BaseDataset)
        and len(dataset) > 0
        and all(
            getattr(type(dataset), name) is getattr(BaseDataset, name)
            for name in ('__getitem__', 'prepare_data')
        )
    )


def _transform_of(error: Exception) -> str:
    """Return the type of the innermost transform of a ``Compose`` that fails."""
    steps = [
        frame.f_locals['t']
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == '__call__' and 't' in frame.f_locals
    ]
    return type(steps[-1]).__name__ if steps else 'a step'


@contextmanager
def _unchanged_random_numbers() -> Iterator[None]:
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
