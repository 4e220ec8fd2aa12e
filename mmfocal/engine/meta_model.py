# SPDX-License-Identifier: Apache-2.0
"""Meta-device models: the modules of a config, with shapes but without values."""

import copy

import torch
from mmengine.registry import MODELS
from torch import nn
from torch.overrides import TorchFunctionMode


class _MetaTensors(TorchFunctionMode):
    """Context manager that creates parameters without memory, so that initialization is free.

    ``torch.device('meta')`` is no alternative, because it also affects the few tensors that
    constructors compute with.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs['device'] = 'meta'
        return func(*args, **kwargs)


def build_meta_model(part: dict) -> nn.Module:
    """Build a module without memory for its parameters and buffers.

    Args:
        part: Config of a model or module; types are looked up in MMEngine's default scope, see
            ``DefaultScope.overwrite_default_scope``.

    Returns:
        The meta-device model, in evaluation mode.

    Raises:
        KeyError: If the type is not registered. Errors of the constructor are passed on.
    """
    with _MetaTensors():
        module = MODELS.build(copy.deepcopy(part))
    return module.to('meta').eval()
