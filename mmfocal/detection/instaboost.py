# SPDX-License-Identifier: Apache-2.0
"""InstaBoost on current NumPy."""

import numpy as np
from mmdet.datasets.transforms import InstaBoost
from mmdet.registry import TRANSFORMS
from pycocotools import mask as coco_mask


def mask_to_polygons(mask: np.ndarray, tolerance: float = 0) -> list[list[float]]:
    """Convert a mask to the polygons of its outlines.

    ``instaboostfast`` 0.1.2 stacks the outlines of a mask in one array. NumPy 1.24 and later raise
    an error if their lengths differ.

    Args:
        mask: Binary mask of shape (H, W).
        tolerance: Maximum deviation of the polygons in pixels.

    Returns:
        Polygons as x, y, x, y, ..., each with at least three corners.
    """
    from skimage import measure

    outlines = measure.find_contours(np.pad(mask, 1), 0.5)  # padded: closed at the borders
    outlines = [measure.approximate_polygon(outline - 1, tolerance) for outline in outlines]
    return [
        np.flip(outline, axis=1).clip(min=0).ravel().tolist()
        for outline in outlines
        if len(outline) > 3  # the first corner is also the last
    ]


def rle_to_polygons(rle: dict) -> list[list[float]]:
    """Convert an RLE mask to polygons.

    Args:
        rle: COCO's ``counts``, compressed or not, and ``size``.

    Returns:
        Polygons as returned by ``mask_to_polygons``.
    """
    if isinstance(rle['counts'], list):
        rle = coco_mask.frPyObjects(rle, *rle['size'])
    return mask_to_polygons(coco_mask.decode(rle))


@TRANSFORMS.register_module()
class RepairedInstaBoost(InstaBoost):
    """mmdet's ``InstaBoost`` with a working ``binary_mask_to_polygon`` of its library.

    Args:
        **kwargs: Arguments of ``InstaBoost``.

    Raises:
        ImportError: If the package ``instaboostfast`` is missing.
    """

    def transform(self, results: dict) -> dict:
        """Paste instances elsewhere.

        Args:
            results: ``img`` and ``instances``, whose masks are not loaded yet.

        Returns:
            The same with both changed; masks are polygons, the only format that the library
            reads.
        """
        from instaboostfast import affine_transform

        # not in __init__, which spawned workers do not run
        affine_transform.binary_mask_to_polygon = mask_to_polygons
        for instance in results.get('instances', ()):
            if isinstance(instance.get('mask'), dict):
                instance['mask'] = rle_to_polygons(instance['mask'])
        return super().transform(results)
