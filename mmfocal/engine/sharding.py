# SPDX-License-Identifier: Apache-2.0
"""FSDP2 for MMEngine's ``FlexibleRunner``: PyTorch's ``fully_shard``, and sharded checkpoints.

MMEngine's own ``FSDPStrategy`` wraps PyTorch's first FSDP, which needs a GPU and is deprecated.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import barrier, is_main_process
from mmengine.registry import STRATEGIES
from torch import Tensor, nn

from mmfocal.compat import check_base, import_strategies
from mmfocal.errors import InputError
from mmfocal.models.pretrained import read_checkpoint

DDPStrategy, SingleDeviceStrategy = import_strategies()
check_base(DDPStrategy)

_SHARD = 'shard'  # the only key of a dict that replaces a tensor by a rank's part of it
_SHARDED = ('state_dict', 'optimizer')  # parts of a checkpoint that hold such dicts


@STRATEGIES.register_module()
class FullyShardStrategy(DDPStrategy):
    """Shard parameters, gradients and optimizer state over all processes.

    A checkpoint is a folder with a file per rank. ``read_sharded`` joins them to the checkpoint
    that a single process would have written, so any number of processes can load it.

    Args:
        modules: Class names of the modules that are gathered one after another. A module gathers
            its parameters when it is called, so code that only calls its methods does not work.
            The rest of the model is gathered at once.
        reshard_after_forward: Free gathered parameters between the passes, see ``fully_shard``.
        **kwargs: See MMEngine's ``DDPStrategy``; ``model_wrapper`` is not used.
    """

    def __init__(
        self,
        *,
        modules: Sequence[str] = ('FocalBlock',),
        reshard_after_forward: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.modules = tuple(modules)
        self.reshard_after_forward = reshard_after_forward

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        try:
            from torch.distributed.fsdp import fully_shard
        except ImportError as error:
            raise ImportError(
                f'FullyShardStrategy needs PyTorch 2.6 or later, found {torch.__version__}'
            ) from error
        from torch.distributed import init_device_mesh

        model = self.convert_model(model.to(get_device()))
        mesh = init_device_mesh(get_device(), (self.world_size,))
        settings = dict(mesh=mesh, reshard_after_forward=self.reshard_after_forward)
        found = [module for module in model.modules() if type(module).__name__ in self.modules]
        absent = set(self.modules) - {type(module).__name__ for module in found}
        if absent:
            raise InputError(f'strategy.modules={self.modules}: the model has no {absent.pop()}')
        for module in found:
            fully_shard(module, **settings)
        return fully_shard(model, **settings)

    def model_state_dict(self) -> dict:
        """Return this rank's part of the parameters, on the CPU."""
        return own_part(self.model.state_dict())

    def optim_state_dict(self) -> dict:
        """Return this rank's part of the optimizer's state, on the CPU."""
        return own_part(super().optim_state_dict())

    def save_checkpoint(
        self, filename: str, *, callback: Callable[[dict], None] | None = None, **kwargs: Any
    ) -> None:
        """Write a folder with a file per rank. The folder appears when it is complete.

        Args:
            filename: The folder.
            callback: Changes the checkpoint before it is saved.
            **kwargs: See ``SingleDeviceStrategy.save_checkpoint``.
        """
        folder = Path(filename)
        unfinished = folder.with_name(f'.{folder.name}.unfinished')

        def add_ranks(checkpoint: dict) -> None:
            checkpoint['meta']['ranks'] = self.world_size
            if callback is not None:
                callback(checkpoint)

        if is_main_process():
            shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
        barrier()
        # not DDPStrategy's, which saves in the first process only
        SingleDeviceStrategy.save_checkpoint(
            self, str(_file(unfinished, self.rank)), callback=add_ranks, **kwargs
        )
        barrier()
        if is_main_process():
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(unfinished, folder)
        barrier()

    def load_model_state_dict(self, state_dict: dict, **kwargs: Any) -> None:
        """Load parameters of a whole model.

        Args:
            state_dict: Tensors by name.
            **kwargs: See ``DDPStrategy.load_model_state_dict``.
        """
        own = self.model.state_dict()
        state = {name.removeprefix('module.'): value for name, value in state_dict.items()}
        state = {name: _like(value, own.get(name)) for name, value in state.items()}
        super().load_model_state_dict(state, **kwargs)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load the optimizer's state of a whole model.

        Args:
            state_dict: As a single process saves it.
        """
        groups = self.optim_wrapper.param_groups
        params = dict(enumerate(param for group in groups for param in group['params']))
        state = {
            index: {key: _like(value, params[index]) for key, value in values.items()}
            for index, values in state_dict['state'].items()
        }
        super().load_optim_state_dict({**state_dict, 'state': state})


# ---- parts of tensors --------------------------------------------------------------------------


def own_part(node: Any) -> Any:
    """Replace sharded tensors in nested dicts and lists by marked parts of this rank.

    Args:
        node: State of a model or an optimizer.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(node, DTensor):
        return {_SHARD: node.to_local().detach().cpu()}
    if isinstance(node, Tensor):
        return node.detach().cpu()
    if isinstance(node, dict):
        return {key: own_part(child) for key, child in node.items()}
    if isinstance(node, (list, tuple)):
        return [own_part(child) for child in node]
    return node


def _join(parts: Sequence[Any]) -> Any:
    """Join the results of ``own_part`` of all ranks."""
    first = parts[0]
    if isinstance(first, dict):
        if first.keys() == {_SHARD}:
            return torch.cat([part[_SHARD] for part in parts])
        return {key: _join([part[key] for part in parts]) for key in first}
    return first


def _like(value: Any, target: Tensor | None) -> Any:
    """Shard a tensor like another one of its shape; other values stay."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(value, Tensor) or not isinstance(target, DTensor):
        return value
    if value.shape != target.shape:
        return value
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)


# ---- files -------------------------------------------------------------------------------------


def _file(folder: Path, rank: int) -> Path:
    return folder / f'rank{rank}.pth'  # as MMEngine's strategies call it


def is_sharded(path: str | Path) -> bool:
    """Return whether a path is a folder with a file per rank.

    Args:
        path: Checkpoint.
    """
    return _file(Path(path), 0).is_file()


def read_sharded(folder: str | Path, allow_pickle: bool = False) -> dict[str, Any]:
    """Read a sharded checkpoint in one process.

    Args:
        folder: Folder with a file per rank.
        allow_pickle: Unpickle objects of any class: trusted files only.

    Returns:
        The checkpoint with whole tensors.

    Raises:
        ValueError: If files are missing, damaged, or not of ``FullyShardStrategy``.
    """
    folder = Path(folder)
    if not is_sharded(folder):
        raise InputError(f'{folder} has no rank0.pth; expected a sharded checkpoint')
    first = read_checkpoint(str(_file(folder, 0)), allow_pickle)
    ranks = (first.get('meta') or {}).get('ranks')
    if not isinstance(ranks, int):
        raise InputError(f'{folder}: rank0.pth has no meta.ranks; expected a sharded checkpoint')
    absent = [rank for rank in range(ranks) if not _file(folder, rank).is_file()]
    if absent:
        raise InputError(f'{folder} is incomplete: {_file(folder, absent[0]).name} is missing')
    others = [read_checkpoint(str(_file(folder, rank)), allow_pickle) for rank in range(1, ranks)]
    return {
        key: _join([part[key] for part in (first, *others)]) if key in _SHARDED else value
        for key, value in first.items()
    }
