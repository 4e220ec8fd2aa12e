# SPDX-License-Identifier: Apache-2.0
"""Checks of drawings: differences between a drawing and its image, and colors of a figure."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb

CLEARLY = 40  # smallest difference of a channel that is visible


def read(path: str | Path) -> np.ndarray:
    """Read a BGR image ``(H, W, 3)``, uint8."""
    image = cv2.imread(str(path))
    assert image is not None, path
    return image


def _compare(drawing: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, float]:
    """Return where a drawing differs clearly from its image, and how alike both are."""
    image = cv2.resize(image, drawing.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    likeness = np.corrcoef(drawing.mean(2).ravel(), image.mean(2).ravel())[0, 1]
    return cv2.absdiff(drawing, image).max(2) > CLEARLY, float(likeness)


def is_drawn_on(drawing: np.ndarray, image: np.ndarray) -> bool:
    """Return whether a drawing shows its image, enlarged or not, and something on it."""
    differs, likeness = _compare(drawing, image)
    return bool(differs.mean() > 0.002 and likeness > 0.3)


def has_box(drawing: np.ndarray, image: np.ndarray, box: Sequence[float]) -> bool:
    """Return whether the border of a box, ``[x1, y1, x2, y2]`` of the image, is drawn on it."""
    differs, _ = _compare(drawing, image)
    factor = len(drawing) / len(image)
    x1, y1, x2, y2 = (round(edge * factor) for edge in box)
    border = cv2.rectangle(np.zeros(differs.shape, np.uint8), (x1, y1), (x2, y2), 1)
    return bool(differs[border > 0].mean() > 0.5)


def looks_like(drawing: str | Path, other: str | Path) -> bool:
    """Whether a figure equals another one, but for fonts and versions of matplotlib."""
    first, second = read(drawing), read(other)
    second = cv2.resize(second, first.shape[1::-1], interpolation=cv2.INTER_AREA)
    differs = cv2.absdiff(*(cv2.GaussianBlur(part, (9, 9), 0) for part in (first, second)))
    return bool((differs.max(2) > CLEARLY).mean() < 0.02)


def shows(drawing: np.ndarray, image: np.ndarray) -> bool:
    """Return whether a drawing shows its image, with or without something on it."""
    return _compare(drawing, image)[1] > 0.3


def shows_matrix(figure: str | Path, matrix: np.ndarray, colors: str, low: float) -> bool:
    """Return whether a framed heat map has the cells of a matrix.

    Args:
        figure: Figure whose widest frame is the square heat map.
        matrix: (N, N).
        colors: Name of the color map.
        low: Value of its first color.
    """
    pixels = read(figure)
    black = pixels.max(2) < 60
    rows, left = np.flatnonzero(black.mean(1) > 0.5), np.flatnonzero(black.mean(0) > 0.5)[0]
    side = (rows[-1] - rows[0]) / len(matrix)
    corners = ((np.arange(len(matrix)) + 0.15) * side).astype(int)  # values are in the centers
    found = pixels[np.ix_(rows[0] + corners, left + corners)].astype(float)
    expected = colormaps[colors]((matrix - low) / (matrix.max() - low))[..., 2::-1] * 255
    return bool(np.abs(found - expected).max() < 12)


def has_curves(figure: str | Path, runs: int) -> bool:
    """Return whether both panels of a figure have curves in the colors of so many runs."""
    panels = two_panels(figure)
    shown = [to_rgb(f'C{index}') for index in range(7)]  # C7 is gray, as text is
    counts = [
        sum(
            (np.abs(panel - np.multiply(color[::-1], 255)).max(2) < 12).sum() > 20
            for color in shown
        )
        for panel in panels
    ]
    return counts == [runs, runs]


def is_picture(path: str | Path) -> bool:
    """Return whether a drawing, which may cover its image, has something in it."""
    return len(np.unique(read(path).reshape(-1, 3), axis=0)) > 20


def is_colored(figure: str | Path) -> bool:
    """Return whether a figure shows data: axes and text alone are gray."""
    return bool((np.ptp(read(figure), axis=2) > 60).mean() > 0.001)


def two_panels(figure: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Cut out the contents of two framed panels beside each other."""
    pixels = read(figure)
    black = pixels.max(2) < 30
    rows, columns = (np.flatnonzero(black.mean(axis) > 0.8) for axis in (1, 0))
    starts, ends = columns[:-1], columns[1:]
    wide = ends - starts > pixels.shape[1] / 4
    left, right = (
        pixels[rows[0] + 3 : rows[-1] - 2, start + 3 : end - 2]
        for start, end in zip(starts[wide], ends[wide], strict=True)
    )
    return left, right
