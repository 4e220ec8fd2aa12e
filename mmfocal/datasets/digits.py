# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits and functions that draw them, for scenes and single images.

The 1,797 scans of handwritten digits that scikit-learn carries are 8 x 8 with 17 gray levels.

Shapes: H, W (height and width of an image in pixels), h, w (of one digit), M (scans).
"""

from dataclasses import dataclass

import cv2
import numpy as np

CLASSES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
SPLITS = ('train', 'val')
INK_LEVEL = 0.48  # gray level of the stroke's edge


@dataclass(frozen=True)
class Scans:
    """A subset of the scans.

    Attributes:
        ids: (M,) indices in scikit-learn's order.
        labels: (M,) class indices 0..9.
        images: (M, 8, 8) gray levels in 0..1, 1 = ink.
    """

    ids: np.ndarray
    labels: np.ndarray
    images: np.ndarray


def load_scans(split: str) -> Scans:
    """Load the scans of one split: a fixed 80 % of each digit for training, 20 % for validation.

    Args:
        split: 'train' or 'val'.

    Raises:
        ValueError: ``split`` is another value.
        ImportError: scikit-learn is not installed.
    """
    if split not in SPLITS:
        raise ValueError(f'split={split!r}: expected one of {SPLITS}')
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('digit scenes need scikit-learn: pip install scikit-learn') from error
    digits = load_digits()
    rng = np.random.default_rng(0)  # fixed seed: every set has the same split
    ids = []
    for label in range(len(CLASSES)):
        members = rng.permutation(np.flatnonzero(digits.target == label))
        cut = round(0.8 * len(members))
        ids.append(members[:cut] if split == 'train' else members[cut:])
    ids = np.sort(np.concatenate(ids))
    return Scans(ids, digits.target[ids], (digits.images[ids] / 16).astype(np.float32))


def ink_box(ink: np.ndarray) -> tuple[slice, slice]:
    """Return rows and columns of the smallest box around the true elements of (H, W) ``ink``."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _slanted(rng: np.random.Generator, scan: np.ndarray) -> np.ndarray:
    """Resample an (8, 8) scan to a (96, 96) grid, slightly rotated and sheared."""
    fine = cv2.resize(np.pad(scan, 2), (96, 96), interpolation=cv2.INTER_CUBIC)
    fine = cv2.GaussianBlur(fine, (0, 0), 2)
    angle, shear = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(-0.2, 0.2)
    cos, sin = np.cos(angle), np.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]])
    center = np.full(2, 47.5)
    return cv2.warpAffine(fine, np.c_[linear, center - linear @ center], (96, 96))


def render_digit(rng: np.random.Generator, scan: np.ndarray, size: int) -> np.ndarray:
    """Draw one digit.

    Args:
        rng: Random generator of the slant.
        scan: (8, 8) gray levels in 0..1.
        size: Longer side of the ink box in pixels.

    Returns:
        (h, w) opacity in 0..1, soft at the edge; ink is where it is at least 0.5, and max(h, w)
        equals ``size``.
    """
    gray = _slanted(rng, scan)
    level = min(INK_LEVEL, 0.6 * gray.max())
    opacity = np.clip((gray - level) / 0.1 + 0.5, 0, 1)
    opacity = opacity[ink_box(opacity >= 0.5)]
    scale = size / max(opacity.shape)
    while True:  # thin tips of a small digit fade, so enlarge it until its box has the size
        height, width = (max(1, round(side * scale)) for side in opacity.shape)
        digit = cv2.resize(opacity, (width, height), interpolation=cv2.INTER_AREA)
        digit = digit[ink_box(digit >= 0.5)]
        if max(digit.shape) >= size:
            return digit[:size, :size]
        scale += 0.5 / max(opacity.shape)


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: int) -> np.ndarray:
    """Return smooth noise (H, W, 3) of about unit variance with bumps ``cell`` pixels wide."""
    grid = [side // cell + 2 for side in shape]  # one more than needed, as the border is flat
    values = rng.standard_normal((*grid, 3), dtype=np.float32)
    noise = cv2.resize(values, (grid[1] * cell, grid[0] * cell), interpolation=cv2.INTER_CUBIC)
    return noise[cell // 2 :, cell // 2 :][: shape[0], : shape[1]]


def render_ground(rng: np.random.Generator, image_size: tuple[int, int]) -> np.ndarray:
    """Draw textured ground: a gradient of two dull colors, bumps, strokes and blobs.

    Args:
        rng: Source of all choices.
        image_size: H and W.

    Returns:
        (H, W, 3) float32 in 0..255, RGB.
    """
    height, width = image_size
    first, second = (rng.uniform(40, 215) + rng.uniform(-35, 35, 3) for _ in range(2))
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.linspace(-1, 1, height)[:, None, None], np.linspace(-1, 1, width)[:, None]
    ramp = 0.5 + 0.35 * (np.cos(angle) * columns + np.sin(angle) * rows)
    ground = (first + ramp * (second - first)).astype(np.float32)
    for _ in range(rng.poisson(height * width / 4000)):
        color = rng.uniform(0.6, 1.4) * ground[
            rng.integers(height), rng.integers(width)
        ] + rng.uniform(-20, 20, 3)
        start, end = (
            tuple(int(v) for v in rng.integers(-10, (width + 10, height + 10))) for _ in range(2)
        )
        if rng.random() < 0.6:
            cv2.line(ground, start, end, color.tolist(), int(rng.integers(1, 5)))
        else:
            axes = tuple(int(v) for v in rng.integers(3, 20, 2))
            cv2.ellipse(ground, start, axes, rng.uniform(0, 180), 0, 360, color.tolist(), -1)
    ground = cv2.GaussianBlur(ground, (0, 0), 0.8)  # soft edges like those of digits
    for cell, strength in ((40, 14), (11, 7), (3, 4)):
        ground += strength * _noise(rng, image_size, cell)
    return np.clip(ground, 0, 255)


def _vivid_color(rng: np.random.Generator, beneath: np.ndarray) -> np.ndarray:
    """Return that of eight random vivid colors which contrasts most with ``beneath`` (P, 3)."""
    hsv = np.stack([rng.uniform(0, 360, 8), rng.uniform(0.65, 1, 8), rng.uniform(0.55, 1, 8)], 1)
    colors = 255 * cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0]
    difference = np.linalg.norm(colors[:, None] - beneath[None], axis=2)
    return colors[np.quantile(difference, 0.1, axis=1).argmax()]


def paint_digit(
    rng: np.random.Generator,
    canvas: np.ndarray,
    opacity: np.ndarray,
    corner: tuple[int, int],
    color: np.ndarray | None = None,
) -> None:
    """Draw a digit in place.

    Args:
        rng: Random generator of the color's noise, and of the color if none is given.
        canvas: (H, W, 3) float32 in 0..255.
        opacity: (h, w) of the digit, in 0..1.
        corner: Row and column of its upper left corner.
        color: (3,) color of the ink; None for a vivid one with contrast to the canvas.
    """
    (row, column), (height, width) = corner, opacity.shape
    patch = canvas[row : row + height, column : column + width]
    if color is None:
        color = _vivid_color(rng, patch[opacity >= 0.5][::4])
    patch += opacity[..., None] * (color + 5 * _noise(rng, opacity.shape, 5) - patch)


def render_crop(rng: np.random.Generator, scan: np.ndarray, crop_size: int) -> np.ndarray:
    """Draw one enlarged scan as chalk on a dark board, both slightly tinted.

    A small classifier with random initial weights does not learn from vivid digits on textured
    ground. Detectors do learn from such scenes, because boxes tell them where the digits are.

    Args:
        rng: Source of all choices.
        scan: (8, 8) gray levels in 0..1.
        crop_size: Side of the image in pixels.

    Returns:
        (crop_size, crop_size, 3) uint8, RGB.
    """
    shape = crop_size, crop_size
    side = crop_size * 7 // 8
    digit = np.clip(cv2.resize(scan, (side, side), interpolation=cv2.INTER_CUBIC), 0, 1)
    board = rng.uniform(20, 40) + rng.uniform(-4, 4, 3)
    canvas = (board + 2 * _noise(rng, shape, max(2, crop_size // 5))).astype(np.float32)
    chalk = rng.uniform(200, 240) + rng.uniform(-6, 6, 3)
    corner = tuple(int(v) for v in rng.integers(0, crop_size - side + 1, 2))
    paint_digit(rng, canvas, digit, corner, chalk)
    return np.clip(np.round(canvas), 0, 255).astype(np.uint8)
