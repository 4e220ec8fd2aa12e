# SPDX-License-Identifier: Apache-2.0
"""Receptive field and number of keys of a query (paper, Fig. 3), computed from the geometry."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from mmfocal.models import FocalTransformer
from mmfocal.ops.focal_attention import FocalGeometry


class Field(NamedTuple):
    """Receptive field of one query of a stage.

    Attributes:
        keys: Distinct keys of each level, fine first.
        side: Side, in tokens, of the square that all keys cover.
    """

    keys: tuple[int, ...]
    side: int


def field_of(geometry: FocalGeometry) -> Field:
    """Return keys and receptive field of a query far from the border of its map.

    Duplicate keys count once, and places of the fine square without a key (``2e > w``) do not
    count.
    """
    none = geometry.window_size**2 + geometry.num_neighbors
    fine = sum(first < none for first in geometry.square_sources[0])
    square, *coarse = geometry.regions
    reach = [region.side * geometry.cell_size(level) for level, region in enumerate(coarse)]
    return Field((fine, *(region.side**2 for region in coarse)), max([square.side, *reach]))


def effective_field(model: FocalTransformer, size: int, stage: int) -> np.ndarray:
    """Return how much each pixel changes the output at the center, over random images.

    Args:
        model: The backbone.
        size: Side of the images in pixels.
        stage: Index of the output.

    Returns:
        (size, size) mean absolute gradient, at most 1.
    """
    place = model.out_indices.index(stage)
    total = torch.zeros(size, size)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        image = torch.randn(1, 3, size, size, generator=generator).requires_grad_()
        out = model.eval()(image)[place]
        center = out[0, :, out.shape[2] // 2, out.shape[3] // 2]
        # random weights, because the sum over channels is constant after a norm
        weights = torch.randn(center.shape, generator=generator)
        (gradient,) = torch.autograd.grad(center @ weights, image)
        total += gradient[0].abs().sum(0)
    return (total / total.max()).numpy()


def save_receptive_field(geometries: Sequence[FocalGeometry], path: str | Path) -> None:
    """Save a picture of receptive field against keys, of full and of focal attention.

    Args:
        geometries: Geometries of the stages of a model, marked in the figure.
        path: Picture to write; its suffix determines the format.
    """
    figure = Figure((6.4, 4.2), layout='constrained')
    axes = figure.subplots()
    keys = np.arange(1, 900)
    axes.plot(keys, np.sqrt(keys), color='gray', label='full attention: all tokens of a square')
    w, e = geometries[0].window_size, geometries[0].expand_size
    axes.plot(w * w, w, 's', color='gray', label=f'windows of {w} only')
    deepest = int(math.log2(w)) + 2
    for level in range(2, min(deepest, 3) + 1):
        fields = [field_of(FocalGeometry(w, e, f, level)) for f in range(1, 16, 2)]
        points = [(sum(field.keys), field.side) for field in fields]
        label = f'focal attention of {level} levels, focal window 1 to 15'
        axes.plot(*zip(*points), '.-', label=label)
    for stage, geometry in enumerate(geometries):
        field = field_of(geometry)
        point = sum(field.keys), field.side
        axes.plot(*point, 'o', color='black', markersize=5)
        axes.annotate(f'stage {stage}', point, (4, 5), textcoords='offset points', fontsize=8)
    axes.set(xlabel='keys of a query', ylabel='side of the receptive field (tokens)')
    axes.set(xlim=(0, 750), ylim=(0, 150))  # room for the legend
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc='upper left')
    figure.savefig(path, dpi=110)


def save_effective_field(field: np.ndarray, title: str, path: str | Path) -> None:
    """Save a picture of :func:`effective_field`, on a logarithmic scale."""
    figure = Figure((4.6, 4.0), layout='constrained')
    axes = figure.subplots()
    shown = axes.imshow(np.log10(np.maximum(field, 1e-6)), cmap='magma', vmin=-4, vmax=0)
    figure.colorbar(shown, ax=axes, label='log10 of the mean absolute gradient')
    axes.set(xticks=[], yticks=[], title=title)
    figure.savefig(path, dpi=110)
