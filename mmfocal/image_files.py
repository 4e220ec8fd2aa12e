# SPDX-License-Identifier: Apache-2.0
"""Names of images, the same for own data, predictions and checks."""

from pathlib import PurePath

IMAGES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')


def is_hidden(path: PurePath) -> bool:
    """Return whether a file or one of its folders is hidden, such as Jupyter's checkpoints.

    Args:
        path: Relative to the folder that is searched.
    """
    return any(part.startswith('.') for part in path.parts)
