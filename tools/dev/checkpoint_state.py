# SPDX-License-Identifier: Apache-2.0
"""The state that a resumed training must restore, for comparisons bit for bit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def state_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Flatten everything in a checkpoint that influences the training.

    Args:
        checkpoint: Content of the checkpoint, with EMA.
    """
    flat: dict[str, Tensor] = {}

    def add(name: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, child in node.items():
                add(f'{name}.{key}', child)
        elif isinstance(node, (list, tuple)):
            add(name, dict(enumerate(node)))
        elif isinstance(node, (Tensor, int, float)):
            flat[name] = torch.as_tensor(node)

    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        add(part, checkpoint[part])
    return flat
