# SPDX-License-Identifier: Apache-2.0
"""Load checkpoints strictly: all of it for testing and resuming, at least a part to start from."""

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from mmfocal.errors import InputError
from mmfocal.models.checkpoint_files import check_values
from mmfocal.models.pretrained import (
    convert_upstream,
    is_derived,
    load_whole_model,
    tensors_of,
)

from .files import local_copy, read_run_checkpoint
from .findings import first_few


class LoadWholeModel(Hook):
    """Load a whole model's checkpoint before testing.

    The hook replaces MMEngine's ``load_from``, which unpickles any object, does not support the
    names of the released classifiers, and only warns about missing parameters.

    Args:
        checkpoint: Local path or URL; a released classification file is converted.
        allow_pickle: Unpickle objects of any class. This can run any code: trusted files only.
    """

    priority = 'LOWEST'  # the EMA hook needs the checkpoint and creates its model in before_run

    def __init__(self, checkpoint: str, allow_pickle: bool = False) -> None:
        self.checkpoint = checkpoint
        self.allow_pickle = allow_pickle

    def before_run(self, runner: Runner) -> None:
        """Load the checkpoint into the runner's model and pass it to the other hooks.

        Args:
            runner: The runner.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, needs unpickling, or is of another model.
        """
        remote = self.checkpoint.startswith(('http://', 'https://'))
        path = local_copy(self.checkpoint) if remote else self.checkpoint
        checkpoint = read_run_checkpoint(path, self.allow_pickle)
        state = convert_upstream(tensors_of(checkpoint, self.checkpoint))
        runner.call_hook('after_load_checkpoint', checkpoint={**checkpoint, 'state_dict': state})
        load_whole_model(_unwrapped(runner.model), state, self.checkpoint)
        classes = getattr(runner.test_loop.dataloader.dataset, 'metainfo', {}).get('classes')
        if line := other_classes(checkpoint, classes, self.checkpoint):
            runner.logger.warning(line)


def classes_of(checkpoint: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes that a model was trained on; none if unknown.

    Args:
        checkpoint: Content of a file of MMEngine, or of an older version of a host library.
    """
    meta = {key.lower(): value for key, value in (checkpoint.get('meta') or {}).items()}
    of_data = {key.lower(): value for key, value in (meta.get('dataset_meta') or {}).items()}
    names = of_data.get('classes') or meta.get('classes') or ()
    return tuple(map(str, (names,) if isinstance(names, str) else names))


def other_classes(
    checkpoint: dict[str, Any], classes: Sequence[str] | None, path: str
) -> str | None:
    """Compare the classes that a model was trained on with those of the test data.

    Args:
        checkpoint: Content of the file.
        classes: Classes of the data; not compared if unknown.
        path: Name of the file.

    Returns:
        How they differ; None if they do not.
    """
    theirs, ours = classes_of(checkpoint), tuple(classes or ())
    if not theirs or not ours or theirs == ours:
        return None
    place = next(
        (i for i, pair in enumerate(zip(theirs, ours)) if pair[0] != pair[1]),
        min(len(theirs), len(ours)),
    )
    names = [first_few(each[place:]) or 'none' for each in (theirs, ours)]
    return (
        f'the classes of {path} and of the test data differ from index {place} on: {names[0]} '
        f'(of {len(theirs)}) and {names[1]} (of {len(ours)}). Predictions are compared by index'
    )


class CheckParameters(Hook):
    """Compare a checkpoint with the model before ``--resume`` or ``load_from`` loads it.

    MMEngine only logs what does not fit, so that training would continue with random layers.
    """

    priority = 'VERY_HIGH'  # before the EMA hook, which loads the parameters too

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Raise an error if the parameters are of another model.

        Args:
            runner: The runner.
            checkpoint: Content of the file.

        Raises:
            InputError: If parameters are missing, unexpected or of another shape and the training
                is resumed, if no parameter fits, or if values are not finite.
        """
        if 'FullyShardedDataParallel' in type(runner.model).__name__:
            return  # PyTorch's first FSDP, which has other names and shapes than its files
        target = _unwrapped(runner.model).state_dict()
        state = checkpoint.get('state_dict', checkpoint)
        expected, found = _shapes(target), _shapes(state)
        if runner._resume:
            _check_same(runner._load_from, expected, found)
        elif not any(expected.get(key) == shape for key, shape in found.items()):
            raise InputError(
                f'load_from={runner._load_from}: none of its {len(found)} parameters fits the '
                f'model; found {_sample(found)}; expected names and shapes such as '
                f'{_sample(expected)}. For the weights of a backbone, set '
                'model.backbone.init_cfg=dict(type="FocalPretrained", checkpoint=...)'
            )
        state = {key.removeprefix('module.'): value for key, value in state.items()}
        check_values(
            state, target, f'{"--resume" if runner._resume else "load_from"}: {runner._load_from}'
        )


def _check_same(path: str, expected: dict[str, Any], found: dict[str, Any]) -> None:
    parts = {
        'of another shape': [
            f'{key} {found[key]} instead of {shape}'
            for key, shape in expected.items()
            if key in found and found[key] != shape
        ],
        'expected but not in the file': [
            f'{key} {shape}' for key, shape in expected.items() if key not in found
        ],
        'in the file but not in the model': [
            f'{key} {shape}' for key, shape in found.items() if key not in expected
        ],
    }
    lines = [f'\n  {what}: {first_few(keys)}' for what, keys in parts.items() if keys]
    if lines:
        raise InputError(
            f'--resume {path} is of another model{"".join(lines)}\nTo start a new training from '
            'its parameters, use --cfg-options load_from=FILE instead'
        )


def _shapes(state: dict) -> dict[str, Any]:
    """Return shapes by the names that MMEngine compares; None for what is no tensor."""
    shapes = {key.removeprefix('module.'): getattr(value, 'shape', None) for key, value in
              state.items()}  # fmt: skip
    return {
        key: None if shape is None else tuple(shape)
        for key, shape in shapes.items()
        if not is_derived(key)
    }


def _sample(shapes: dict[str, Any]) -> str:
    return first_few([f'{key} {shape}' for key, shape in shapes.items()], 2) or 'none'


def _unwrapped(model: nn.Module) -> nn.Module:
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model
