# SPDX-License-Identifier: Apache-2.0
"""Load a checkpoint for testing, safely and strictly."""

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner

from mmfocal.models.pretrained import (
    convert_upstream,
    load_whole_model,
    tensors_of,
)

from .files import local_copy, read_run_checkpoint


class LoadWholeModel(Hook):
    """Load a whole model's checkpoint before testing.

    The hook replaces MMEngine's ``load_from``, which unpickles any object, does not support the
    names of the released classifiers, and only warns about missing parameters.

    Args:
        checkpoint: Local path or address; a released classification file is converted.
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
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        load_whole_model(model, state, self.checkpoint)
