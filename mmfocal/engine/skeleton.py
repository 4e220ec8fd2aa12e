# SPDX-License-Identifier: Apache-2.0
"""Models that have shapes but no values: what a config describes, in a fraction of a second."""

import copy

import torch
from mmengine.registry import MODELS
from torch import nn
from torch.overrides import TorchFunctionMode


class _EmptyOnMeta(TorchFunctionMode):
    """Makes parameters without memory, so that initialising them takes no time.

    ``torch.device('meta')`` would also do this to the few numbers that constructors compute with.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs['device'] = 'meta'
        return func(*args, **kwargs)


def build_skeleton(part: dict) -> nn.Module:
    """Build a module without memory for its parameters and buffers.

    Args:
        part: Config of a model or of a part of one; types are looked for in MMEngine's default
            scope, see ``DefaultScope.overwrite_default_scope``.

    Returns:
        The module on PyTorch's meta device, in evaluation mode.

    Raises:
        KeyError: If the type is not registered, or what the module's constructor raises.
    """
    with _EmptyOnMeta():
        module = MODELS.build(copy.deepcopy(part))
    return module.to('meta').eval()
