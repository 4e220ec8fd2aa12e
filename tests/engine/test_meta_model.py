# SPDX-License-Identifier: Apache-2.0
"""Meta-device models equal the real ones, except that they have no memory."""

import copy
from collections.abc import Iterator

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmfocal.engine import build_meta_model

FOCAL = dict(
    type='FocalTransformer', arch=dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4))
)


class Sharing(nn.Module):
    """Has a parameter under two names, a buffer, and a number computed with tensors."""

    def __init__(self, parts: dict) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)
        self.second.weight = self.first.weight
        self.register_buffer('table', torch.arange(parts.pop('length')))
        self.middle = torch.linspace(0, 1, 3)[1].item()


@pytest.fixture
def sharing() -> Iterator[dict]:
    MODELS.register_module(module=Sharing)
    yield dict(type='Sharing', parts=dict(length=5))
    MODELS.module_dict.pop('Sharing')


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor.shape for name, tensor in tensors}


def test_everything_has_its_shape_and_nothing_has_memory(sharing: dict) -> None:
    for part in (FOCAL, sharing):
        model = build_meta_model(part)
        assert shapes(model) == shapes(MODELS.build(copy.deepcopy(part)))
        tensors = (*model.parameters(), *model.buffers())
        assert {tensor.device.type for tensor in tensors} == {'meta'}
        assert not any(module.training for module in model.modules())


def test_sharing_and_numbers_survive_and_the_config_is_left_as_it_was(sharing: dict) -> None:
    model = build_meta_model(sharing)
    assert model.first.weight is model.second.weight
    assert model.middle == 0.5
    assert sharing['parts'] == dict(length=5)
    assert torch.empty(1).device.type == 'cpu'  # afterwards
