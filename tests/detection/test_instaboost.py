# SPDX-License-Identifier: Apache-2.0
"""InstaBoost moves instances and runs on masks of several outlines."""

import pickle
import random

import numpy as np
import pytest
from mmdet.utils import register_all_modules
from pycocotools import mask as coco_mask

from mmfocal.detection.instaboost import RepairedInstaBoost, mask_to_polygons

pytest.importorskip('instaboostfast')


def rle_of(polygons: list) -> dict:
    return coco_mask.merge(coco_mask.frPyObjects(polygons, 200, 300))


def counts_of(polygons: list) -> dict:
    """Uncompressed, as COCO's crowds are."""
    flat = coco_mask.decode(rle_of(polygons)).ravel(order='F')
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=2))
    return dict(counts=np.diff(edges, prepend=0).tolist(), size=[200, 300])


def two_parts() -> np.ndarray:
    mask = np.zeros((40, 60), np.uint8)
    mask[5:15, 0:20] = 1  # touches the border
    mask[20:38, 30:50] = 1
    mask[20:25, 30:35] = 0  # a corner more, so the outlines' lengths differ
    return mask


def test_polygons_outline_each_part():
    mask = two_parts()
    polygons = mask_to_polygons(mask)
    assert len(polygons) == 2
    assert min(min(polygon) for polygon in polygons) == 0
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape)))
    differing = (drawn != mask).sum()
    # the outline runs half a pixel outside, so only pixels of the rim may differ
    assert differing <= sum(len(polygon) // 2 for polygon in polygons), differing


def test_lines_and_points_are_no_polygons():
    assert mask_to_polygons(np.zeros((5, 5), np.uint8)) == []
    line = np.zeros((5, 20), np.uint8)
    line[2, 3:17] = 1
    assert len(mask_to_polygons(line)) == 1
    assert mask_to_polygons(line, tolerance=2) == []  # there and back


@pytest.mark.parametrize('form', ['polygons', 'compressed', 'counts'])
def test_instances_move_and_keep_their_labels(monkeypatch, form):
    from instaboostfast import affine_transform, pycococreater

    register_all_modules()
    boost = pickle.dumps(RepairedInstaBoost(aug_ratio=1.0, color_prob=0.0))
    # a worker that is spawned has the library as it came
    unrepaired = pycococreater.binary_mask_to_polygon
    monkeypatch.setattr(affine_transform, 'binary_mask_to_polygon', unrepaired)
    random.seed(0)
    np.random.seed(0)
    polygons = mask_to_polygons(np.kron(two_parts(), np.ones((5, 5), np.uint8)))
    image = np.random.randint(0, 255, (200, 300, 3), np.uint8)
    masks = dict(polygons=polygons, compressed=rle_of(polygons), counts=counts_of(polygons))
    instance = dict(bbox=[0, 25, 250, 190], bbox_label=7, mask=masks[form], ignore_flag=0)
    results = pickle.loads(boost).transform(dict(img=image.copy(), instances=[instance]))
    (moved,) = results['instances']
    assert moved['bbox_label'] == 7
    assert results['img'].shape == image.shape and (results['img'] != image).any()
    assert moved['mask'] != polygons
    x1, y1, x2, y2 = moved['bbox']
    assert -1 <= x1 < x2 <= 301 and -1 <= y1 < y2 <= 201
