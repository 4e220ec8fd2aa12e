# SPDX-License-Identifier: Apache-2.0
"""Figures of focal attention: the keys of a query and its attention weights."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from mmfocal.ops.focal_attention.geometry import FocalGeometry, key_index

from .attention_maps import AttentionMap

NOTHING, WINDOW, NEIGHBOR, TWICE, COARSE, MASKED = range(6)
KINDS = (
    *('no key', 'window key', 'neighbor key', 'neighbor key, attended twice'),
    *('coarse key', 'masked'),
)
COLORS = ('#f4f4f4', '#d1495b', '#edae49', '#9a5b00', '#3d7ea6', '#c9c9c9')


def fine_kinds(geometry: FocalGeometry, map_size: tuple[int, int], window: int) -> np.ndarray:
    """Return the kind of key that each token of the map is for a window.

    Args:
        geometry: The key set.
        map_size: Rows and columns, multiples of the window.
        window: Index of the window, row-major.

    Returns:
        (H, W) of ``NOTHING``, ``WINDOW``, ``NEIGHBOR`` and ``TWICE``.
    """
    (height, width), w = map_size, geometry.window_size
    top, left = (w * place for place in divmod(window, width // w))
    count = np.zeros(map_size, int)
    for move in geometry.moves:
        for position in move.kept:
            row, column = top + position // w + move.rows, left + position % w + move.cols
            count[row % height, column % width] += 1
    kinds = np.choose(np.minimum(count, 2), (NOTHING, NEIGHBOR, TWICE))
    kinds[top : top + w, left : left + w] = WINDOW
    return kinds


def coarse_cells(
    geometry: FocalGeometry, map_size: tuple[int, int], window: int, level: int
) -> tuple[np.ndarray, int]:
    """Return the kind of key that each coarse cell is for a window.

    Args:
        geometry: The key set.
        map_size: Rows and columns of the token map.
        window: Index of the window, row-major.
        level: Coarse level k.

    Returns:
        Cells of ``NOTHING``, ``COARSE`` and ``MASKED`` on a map with a border for masked keys, and
        the width of that border, which is the side of the coarse region.
    """
    region, sizes = geometry.regions[1 + level], geometry.map_sizes(*map_size)
    rows, columns = sizes[1 + level]
    border = region.side
    kinds = np.full((rows + 2 * border, columns + 2 * border), NOTHING)
    place = divmod(window, map_size[1] // geometry.window_size)
    top, left = (count * region.step - region.margin + border for count in place)
    kinds[top : top + border, left : left + border] = MASKED
    # keys on the map, by the index that all backends use
    index = key_index(geometry, *map_size, torch.device('cpu'))[window]
    keys = index[region.first : region.first + border**2].numpy()
    start = sum(down * across for down, across in sizes[: 1 + level])
    on_map = keys[keys < start + rows * columns] - start
    kinds[border + on_map // columns, border + on_map % columns] = COARSE
    return kinds, border


def _show(axes: Axes, kinds: np.ndarray, offset: float, cell: float) -> None:
    """Draw kinds whose squares are ``cell`` tokens wide, the first one at ``-offset`` tokens."""
    rows, columns = kinds.shape
    extent = (-offset, columns * cell - offset, rows * cell - offset, -offset)
    options = dict(cmap=ListedColormap(COLORS), vmin=-0.5, vmax=5.5, interpolation='nearest')
    axes.imshow(kinds, extent=extent, **options)


def _frame(axes: Axes, map_size: tuple[int, int], window: int, w: int, cell: float) -> None:
    """Draw grids of windows and cells, border of the map, the query and its window."""
    height, width = map_size
    for step, line_width in ((w, 1.0), (cell, 0.4)):
        lines = dict(color='white', linewidth=line_width)
        axes.hlines(np.arange(0, height + step / 2, step), 0, width, **lines)
        axes.vlines(np.arange(0, width + step / 2, step), 0, height, **lines)
    axes.add_patch(Rectangle((0, 0), width, height, fill=False, linewidth=1.2, zorder=3))
    top, left = (w * place for place in divmod(window, width // w))
    axes.add_patch(Rectangle((left, top), w, w, fill=False, linewidth=1.6, zorder=3))
    axes.plot(left + w / 2, top + w / 2, 'o', color='black', markersize=4)
    axes.set(xticks=[], yticks=[])


def _draw_fine(
    axes: Axes, geometry: FocalGeometry, size: tuple[int, int], window: int, where: str
) -> None:
    kinds = fine_kinds(geometry, size, window)
    _show(axes, kinds, 0, 1)
    _frame(axes, size, window, geometry.window_size, 1)
    axes.set_title(f'fine, {where}: {(kinds != NOTHING).sum()} tokens', fontsize=9)


def _draw_coarse(
    axes: Axes, geometry: FocalGeometry, size: tuple[int, int], window: int, level: int, where: str
) -> None:
    cells, border = coarse_cells(geometry, size, window, level)
    w = geometry.window_size
    cell = w / 2**level
    _show(axes, cells, border * cell, cell)
    _frame(axes, size, window, w, cell)
    used = np.argwhere(cells != NOTHING) * cell - border * cell
    low, high = used.min(0) - 1, used.max(0) + cell + 1
    axes.set_xlim(min(low[1], -1), max(high[1], size[1] + 1))
    axes.set_ylim(max(high[0], size[0] + 1), min(low[0], -1))
    masked = (cells == MASKED).sum()
    title = f'coarse level {level}, {where}: {(cells == COARSE).sum()} cells'
    axes.set_title(title + (f', {masked} masked' if masked else ''), fontsize=9)


def save_keys(geometry: FocalGeometry, map_size: tuple[int, int], path: str | Path) -> None:
    """Save a figure of the keys of two queries at every level: in the center and in a corner.

    Args:
        geometry: The key set.
        map_size: Rows and columns of the map in windows.
        path: Picture to write; its suffix determines the format.
    """
    w = geometry.window_size
    size = tuple(w * count for count in map_size)
    windows = {
        'in the center': map_size[0] // 2 * map_size[1] + map_size[1] // 2,
        'in a corner': 0,
    }
    columns = 1 + len(geometry.coarse_levels)
    figure = Figure((3.4 * columns, 7.6), layout='constrained')
    grid = figure.subplots(2, columns, squeeze=False)
    for row, (where, window) in zip(grid, windows.items()):
        _draw_fine(row[0], geometry, size, window, where)
        for level, axes in zip(geometry.coarse_levels, row[1:]):
            _draw_coarse(axes, geometry, size, window, level, where)
    legend = [
        Patch(color=color, label=name) for color, name in zip(COLORS[1:], KINDS[1:], strict=True)
    ]
    figure.legend(handles=legend, loc='outside lower center', ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def save_attention(image: np.ndarray, attention: AttentionMap, path: str | Path) -> None:
    """Save a figure of the attention of a query at every level, overlaid on the image.

    Args:
        image: (rows, columns, 3) uint8, RGB.
        attention: Result of :func:`mmfocal.visualization.attention_maps.attention_map`.
        path: Picture to write; its suffix determines the format.
    """
    rows, columns = image.shape[:2]
    stride, names = attention.stride, ['fine']
    names += [f'coarse level {level}' for level in range(len(attention.levels) - 1)]
    figure = Figure((4.0 * len(names), 4.3 * rows / columns + 0.5), layout='constrained')
    for axes, name, values, share in zip(
        figure.subplots(1, len(names), squeeze=False)[0],
        names,
        attention.levels,
        attention.shares,
        strict=True,
    ):
        axes.imshow(image.mean(2), cmap='gray', vmin=0, vmax=255)
        height, width = values.shape
        extent = (-0.5, width * stride - 0.5, height * stride - 0.5, -0.5)
        shown = axes.imshow(
            np.ma.masked_invalid(values), cmap='inferno', alpha=0.65, extent=extent, vmin=0
        )
        top, left = (part.start * stride for part in attention.window)
        side = (attention.window[0].stop - attention.window[0].start) * stride
        axes.add_patch(
            Rectangle((left - 0.5, top - 0.5), side, side, fill=False, color='white', linewidth=1)
        )
        y, x = (place * stride + stride / 2 - 0.5 for place in attention.query)
        axes.plot(x, y, '+', color='cyan', markersize=10, markeredgewidth=2)
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xticks=[], yticks=[])
        axes.set_title(f'{name}: {100 * share:.0f} % of the attention', fontsize=9)
        figure.colorbar(shown, ax=axes, shrink=0.7)
    figure.savefig(path, dpi=110)
