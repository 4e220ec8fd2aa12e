# SPDX-License-Identifier: Apache-2.0
"""Stop at the first non-finite loss and report its origin."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from .findings import first_few
from .randomness import RandomNumbers


class StopAtNonFinite(Hook):
    """End the training before a NaN or infinite loss reaches the weights.

    The step is repeated with hooks on all modules to find the first non-finite tensor.
    """

    def before_train(self, runner: Runner) -> None:
        """Check each loss before the optimizer uses it.

        Args:
            runner: The runner.
        """
        wrapper = runner.optim_wrapper
        update = getattr(wrapper, 'update_params', None)
        if update is None:
            return

        def update_if_finite(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            if not bool(torch.isfinite(loss).all()):
                self._stop(runner, loss)
            update(loss, *args, **kwargs)

        wrapper.update_params = update_if_finite

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Store the batch.

        Args:
            runner: The runner.
            batch_idx: Not used.
            data_batch: Data of the step.
        """
        self.batch = data_batch

    def after_train(self, runner: Runner) -> None:
        """Restore the optimizer.

        Args:
            runner: The runner.
        """
        vars(runner.optim_wrapper).pop('update_params', None)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Prevent a checkpoint with non-finite weights.

        Args:
            runner: The runner.
            checkpoint: Content to be saved.

        Raises:
            FloatingPointError: If a parameter is not finite.
        """
        name = _first_parameter(_bare(runner.model))
        if name:
            raise FloatingPointError(
                f'iteration {runner.iter + 1}: {name} is not finite, so no checkpoint is written; '
                'the weights of the last checkpoint are finite'
            )

    def _stop(self, runner: Runner, loss: Tensor) -> None:
        source = first_non_finite(runner, self.batch)
        raise FloatingPointError(
            f'iteration {runner.iter + 1}: the loss is {loss.item()}. The first tensor that is '
            f'not finite: {source}. Images: {first_few(_pictures(self.batch), 16)}'
        )


def first_non_finite(runner: Runner, batch: Any) -> str:
    """Repeat a step and return the name of the first non-finite tensor.

    Args:
        runner: The runner.
        batch: Data of the step.
    """
    model = _bare(runner.model)
    name = _first_parameter(model)
    if name:
        return f'parameter {name}, after an earlier step'
    if get_world_size() > 1 and any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()):
        return 'unknown, since SyncBN waits for the other processes'
    found: list[str] = []
    handles = [
        module.register_forward_hook(_recorder(name or 'model', module, found))
        for name, module in model.named_modules()
    ]
    for hook in runner.hooks:
        if isinstance(hook, RandomNumbers):
            hook.before_train_iter(runner, runner.iter)
    try:
        with torch.no_grad(), runner.optim_wrapper.optim_context(model):
            data = model.data_preprocessor(batch, True)
            bad = [f'input {name}' for name, each in _tensors('', data) if _is_bad(each)]
            losses = (
                model(**data, mode='loss') if isinstance(data, dict) else model(*data, mode='loss')
            )
            found = bad + found
            found += [f'loss {name}' for name, each in _tensors('', losses) if _is_bad(each)]
    except Exception as error:  # the non-finite loss is more important
        found.append(f'unknown, because repeating the step fails with {error!r}')
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else 'none when the forward pass is repeated'


def _recorder(name: str, module: nn.Module, found: list[str]) -> Any:
    def record(_: nn.Module, args: tuple, output: Any) -> None:
        if not found and any(_is_bad(each) for _, each in _tensors('', output)):
            found.append(f'output of {name} ({type(module).__name__})')

    return record


def _is_bad(tensor: Tensor) -> bool:
    if hasattr(tensor, 'to_local'):  # sharded; each rank checks its part
        tensor = tensor.to_local()
    return tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())


def _tensors(name: str, node: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested dicts and lists, with their keys."""
    if isinstance(node, Tensor):
        yield name, node
        return
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if isinstance(node, dict):
        for key, child in node.items():
            yield from _tensors(f'{name}.{key}'.lstrip('.'), child)


def _first_parameter(model: nn.Module) -> str | None:
    return next((name for name, each in model.named_parameters() if _is_bad(each)), None)


def _bare(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _pictures(batch: Any) -> list[str]:
    samples = batch.get('data_samples', []) if isinstance(batch, dict) else []
    return [str(getattr(sample, 'img_path', 'unknown')) for sample in samples] or ['unknown']
