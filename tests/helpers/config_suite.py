# SPDX-License-Identifier: Apache-2.0
"""The shipped configs, what their names say, and their models."""

import copy
import functools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmfocal.engine import build_meta_model

ROOT = Path(__file__).resolve().parents[2] / 'configs'
HOSTS = dict(detection='mmdet', segmentation='mmseg', classification='mmpretrain')
SMALL_HOSTS = dict(upernet='segmentation', cls='classification')  # the others are detectors
MISSING = [host for host in HOSTS.values() if find_spec(host) is None]


def host_of(name: str) -> str:
    """Return the host library of a config's model and data."""
    folder, _, stem = name.partition('/')
    if folder == 'quickstart':
        folder = SMALL_HOSTS.get(stem.split('_')[-1], 'detection')
    return HOSTS[folder]


ALL = sorted(
    str(path.relative_to(ROOT).with_suffix(''))
    for path in ROOT.rglob('*.py')
    if '_base_' not in path.parts
)
CONFIGS = [name for name in ALL if host_of(name) not in MISSING]
SMALL = [name for name in CONFIGS if name.startswith('quickstart/')]
# rows of the paper's tables and their variants
ROWS = [name for name in CONFIGS if name not in SMALL and not name.endswith('_overfit')]
METHODS = (
    *(
        'retinanet',
        'maskrcnn',
        'fasterrcnn',
        'cascade',
        'atss',
        'reppointsv2',
        'sparsercnn',
        'htcpp',
        'dyhead',
    ),
    *('upernet', 'in1k', 'in22k'),
)
# keys that training and evaluation read, except for the backbone
RUN_KEYS = (
    *('model', 'data_preprocessor', 'optim_wrapper', 'param_scheduler'),
    *('train_cfg', 'val_cfg', 'test_cfg', 'train_dataloader', 'val_dataloader', 'test_dataloader'),
    *('val_evaluator', 'test_evaluator', 'tta_model', 'tta_pipeline', 'auto_scale_lr'),
    *('default_hooks', 'default_scope', 'randomness', 'env_cfg', 'visualizer', 'log_processor'),
)


def words(name: str) -> list[str]:
    """Backbone, size, ..., schedule."""
    return name.split('/')[-1].split('_')


def method_of(name: str) -> str:
    (method,) = set(words(name)) & set(METHODS)
    return method


def has_masks(cfg: Config) -> bool:
    return 'mask_head' in cfg.model.get('roi_head', {})


def skip_without_host(name: str) -> None:
    """Skip the test if the config's bases lie in a library that is not installed."""
    if host_of(name) in MISSING:
        pytest.skip(f'{host_of(name)} is not installed')


@functools.cache
def _read(name: str) -> Config:
    skip_without_host(name)
    return Config.fromfile(ROOT / f'{name}.py')


def load(name: str) -> Config:
    """Read a config, or copy what an earlier test read."""
    return copy.deepcopy(_read(name))


def build(cfg: Config) -> nn.Module:
    """Build a model as MMEngine's runner does."""
    model = copy.deepcopy(cfg.model)
    if 'data_preprocessor' in cfg:
        model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(model)


def build_meta(cfg: Config) -> nn.Module:
    """Build a model without memory for its parameters."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return build_meta_model(cfg.model)


@functools.cache
def meta_model(name: str) -> nn.Module:
    """A config's model without memory for its parameters; not to be changed."""
    return build_meta(_read(name))


_maps: dict[str, list[Tensor]] = {}


def backbone_maps(name: str) -> list[Tensor]:
    """Maps of the backbone for an image of 224 pixels, as tensors without memory."""
    ignored = ('init_cfg', 'drop_path_rate', 'with_cp')
    backbone = _read(name).model.backbone
    key = repr({key: value for key, value in backbone.items() if key not in ignored})
    if key not in _maps:
        backbone = meta_model(name).backbone
        backbone.eval()
        with torch.no_grad():
            _maps[key] = list(backbone(torch.zeros(1, 3, 224, 224, device='meta')))
    return _maps[key]


def settings(node: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of every setting in nested dicts and lists of dicts."""
    if isinstance(node, dict) and node:
        for name, part in node.items():
            if name != '_scope_':  # where MMEngine looks for a type first
                yield from settings(part, f'{key}.{name}' if key else name)
    elif isinstance(node, (list, tuple)) and any(isinstance(part, dict) for part in node):
        for index, part in enumerate(node):
            yield from settings(part, f'{key}.{index}')
    else:
        yield key, list(node) if isinstance(node, (list, tuple)) else node


def differences(first: Config, second: Config, keys: tuple[str, ...] = RUN_KEYS) -> dict:
    """Compare two configs: dotted key -> value in each of them, None where it is absent."""
    found = []
    for cfg in (first, second):
        parts = {key: value for key, value in cfg.to_dict().items() if key in keys}
        found.append(dict(settings(parts)))
    first, second = found
    return {
        key: (first.get(key), second.get(key))
        for key in sorted({*first, *second})
        if first.get(key) != second.get(key)
    }
