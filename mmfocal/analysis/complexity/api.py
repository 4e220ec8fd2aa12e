# SPDX-License-Identifier: Apache-2.0
"""Parameters and FLOPs of a config."""

from collections import Counter
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmfocal.engine import build_meta_model

from .conventions import Shape, find_convention
from .counter import MacCounter
from .feed import Feed
from .image_size import test_shape

DEFAULT_SHAPES = {'mmdet': (800, 1280), 'mmseg': (512, 2048), 'mmpretrain': (224, 224)}
LEAST_SIDE = 32  # stride of the last stage


def _count_params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _count_macs(model: nn.Module, shape: Shape) -> dict[str, Counter[str]]:
    """Count MACs by kind for every module that runs on an image; ``'Global'`` has the total."""
    feed = Feed(model)
    with MacCounter(model) as counter, torch.no_grad():
        feed(torch.empty(1, 3, *shape, device='meta'))
    return {name.removeprefix('Feed.model.'): macs for name, macs in counter.macs().items()}


class ModuleComplexity(NamedTuple):
    """One row of :meth:`Complexity.by_module`; ``flops`` are MACs."""

    name: str
    type: str
    params: int
    flops: int


class Complexity:
    """Parameters and FLOPs of one model; returned by :func:`complexity`.

    Args:
        model: Detector, segmentor or classifier on the meta device.
        shape: Height and width of the image.
        keep_shape: Count at ``shape`` even if a convention has its own shape.

    Attributes:
        params: Trainable parameters of the whole model, auxiliary heads included.
        shape: Height and width of the image.
    """

    def __init__(self, model: nn.Module, shape: Shape, keep_shape: bool) -> None:
        self.params = _count_params(model)
        self.shape = shape
        self._model = model
        self._keep_shape = keep_shape
        self._macs: dict[Shape, dict[str, Counter[str]]] = {}

    def shape_of(self, convention: str) -> Shape:
        """Return height and width at which ``flops(convention)`` counts."""
        shape = find_convention(convention).shape
        return self.shape if self._keep_shape or shape is None else shape

    def _macs_at(self, shape: Shape) -> dict[str, Counter[str]]:
        if shape not in self._macs:
            self._macs[shape] = _count_macs(self._model, shape)
        return self._macs[shape]

    def flops(self, convention: str = 'default') -> float:
        """Return the MACs of the whole model.

        Args:
            convention: A key of ``CONVENTIONS``.

        Raises:
            ValueError: If there is no such convention, or the model cannot be run without data.
        """
        macs = self._macs_at(self.shape_of(convention))['Global']
        return sum(macs[kind] for kind in find_convention(convention).kinds)

    def by_module(self, convention: str = 'default', depth: int = 1) -> list[ModuleComplexity]:
        """Return parameters and MACs of the model's modules.

        Args:
            convention: A key of ``CONVENTIONS``.
            depth: Number of levels of modules to list.

        Returns:
            Parents before their children, without modules that have no parameters.

        Raises:
            ValueError: As :meth:`flops`.
        """
        macs = self._macs_at(self.shape_of(convention))
        kinds = find_convention(convention).kinds

        def flops(name: str, module: nn.Module) -> int:
            if name in macs:
                return sum(macs[name][kind] for kind in kinds)
            # containers, and heads of which only methods are called, have no forward pass
            return sum(flops(f'{name}.{key}', child) for key, child in module.named_children())

        return [
            ModuleComplexity(name, type(module).__name__, params, flops(name, module))
            for name, module in self._model.named_modules()
            if name and name.count('.') < depth and (params := _count_params(module))
        ]


def complexity(cfg: Config, shape: Shape | None = None) -> Complexity:
    """Build the model of a config, without data, weights or arithmetic.

    Args:
        cfg: Config of mmdet, mmseg or mmpretrain.
        shape: Height and width of the image; None for the size that the config tests on, or the
            convention's. If the test pipeline sets no size: 800x1280 for detectors, 512x2048 for
            segmentors, 224x224 for classifiers.

    Returns:
        The parameters; FLOPs are counted on demand.

    Raises:
        ValueError: If the config's scope is unknown or the shape too small.
    """
    scope = cfg.get('default_scope')
    if scope not in DEFAULT_SHAPES:
        expected = ', '.join(DEFAULT_SHAPES)
        raise ValueError(f'{cfg.filename}: default_scope must be one of {expected}, got {scope!r}')
    if shape is not None and (len(shape) != 2 or min(shape) < LEAST_SIDE):
        raise ValueError(
            f'shape must be a height and a width of at least {LEAST_SIDE}, got {tuple(shape)}'
        )
    with DefaultScope.overwrite_default_scope(scope):
        model = build_meta_model(cfg.model)
    keep_shape = shape is not None
    chosen = shape or test_shape(cfg) or DEFAULT_SHAPES[scope]
    return Complexity(model, tuple(chosen), keep_shape)
