# SPDX-License-Identifier: Apache-2.0
"""Checks of files, folders and images."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..findings import Findings, first_few

SAMPLE = 50  # number of files that are opened, evenly spread, so that startup stays fast
PICTURES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')
_DECODED_PIXELS = 2_000_000  # of larger images only the header is checked
_EXIF_ORIENTATION = 0x0112


# ---- files --------------------------------------------------------------------------------------


def is_remote(path: str) -> bool:
    """Return whether a path is an address such as ``s3://...``, which is not checked.

    Args:
        path: Path or address.
    """
    return '://' in path


def has_file(path: str, hint: str, key: str, findings: Findings) -> bool:
    """Check that a file exists, unless it is remote.

    Args:
        path: The file.
        hint: How to get it.
        key: Key of the file in the config.
        findings: Collects the error.
    """
    found = is_remote(path) or os.path.isfile(path)
    if not found:
        findings.error(f'{key}: expected a file at {path}\n{hint}')
    return found


def has_files(path: str, hint: str, key: str, findings: Findings) -> bool:
    """Check that a folder exists and contains files, also in subfolders, unless it is remote.

    Args:
        path: The folder.
        hint: How to get it.
        key: Key of the file in the config.
        findings: Collects the error.
    """
    found = is_remote(path) or any(files for _, _, files in os.walk(path, followlinks=True))
    if not found:
        findings.error(f'{key}: expected a folder with files at {path}\n{hint}')
    return found


def missing_files(paths: Iterable[str]) -> Iterator[str]:
    """Yield the paths that do not exist.

    Each folder is listed once, which is faster than a lookup per file on network disks.

    Args:
        paths: Files to look for.
    """
    listed: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in listed[folder]:
            yield path


def sample(items: Sequence[Any], size: int = SAMPLE) -> list[Any]:
    """Choose up to ``size`` items, evenly spread.

    Args:
        items: All items.
        size: Maximum number.
    """
    if not items:
        return []
    indices = np.linspace(0, len(items) - 1, min(size, len(items))).astype(int)
    return [items[index] for index in indices]


def are_present(key: str, paths: Sequence[str], what: str, findings: Findings) -> bool:
    """Check that files exist.

    Args:
        key: Key of their folder in the config.
        paths: The files.
        what: Description of the files.
        findings: Collects the error, which names the first missing file.
    """
    missing = list(missing_files(paths))
    if missing:
        findings.error(
            f'{key}: {len(missing)} of {len(paths)} {what} are missing, the first is {missing[0]}'
        )
    return not missing


# ---- pictures -----------------------------------------------------------------------------------


def picture_size(path: str) -> tuple[int, int] | None:
    """Return the size at which the hosts load an image, after EXIF rotation.

    Args:
        path: Image in any format and mode.

    Returns:
        Width and height; None if the image is readable but its size is unknown.

    Raises:
        OSError: If the image cannot be read or is truncated.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # damaged EXIF tags, huge images
        try:
            with Image.open(path) as image:
                width, height = image.size
                if width * height <= _DECODED_PIXELS:
                    image.load()
                turned = image.getexif().get(_EXIF_ORIENTATION, 1)
        except Image.DecompressionBombError:  # too large for Pillow, but the hosts may read it
            return None
        except OSError:
            if os.path.getsize(path) and _opencv_reads(path):
                return None
            raise
        except (SyntaxError, ValueError, EOFError) as error:  # damaged PNG chunks
            raise OSError(str(error)) from error
    return (height, width) if turned in (5, 6, 7, 8) else (width, height)


def _opencv_reads(path: str) -> bool:
    """Whether OpenCV reads a format that Pillow does not support; it pads truncated images."""
    import cv2

    try:
        with Image.open(path):
            return False  # supported format, but damaged
    except OSError:
        return cv2.imread(path) is not None


def check_pictures(key: str, paths: Sequence[str], findings: Findings) -> None:
    """Open a sample of images.

    Args:
        key: Key of their folder in the config.
        paths: All of them.
        findings: Collects an error if some cannot be read.
    """
    broken = []
    for path in sample(paths):
        try:
            picture_size(path)
        except OSError as error:
            broken.append(f'{path} ({error})')
    if broken:
        findings.error(
            f'{key}: {len(broken)} of a sample of {len(sample(paths))} pictures cannot be read: '
            f'{first_few(broken)}'
        )
