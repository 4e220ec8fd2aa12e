# SPDX-License-Identifier: Apache-2.0
"""Annotations that pass the checks are read by pycocotools and mmdet as the checks say."""

import contextlib
import io
import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

pytest.importorskip('hypothesis')
pytest.importorskip('mmdet')

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmdet.datasets import CocoDataset
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmfocal.datasets.label_maps import write_label_maps
from mmfocal.engine.checks.coco import (
    CocoFile,
    check_boxes,
    check_ids,
    check_masks,
    check_references,
    mask_problem,
)
from mmfocal.engine.findings import Findings

FUZZ = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
HEIGHT, WIDTH = 6, 9


@st.composite
def binary_masks(draw: st.DrawFn) -> np.ndarray:
    """(H, W) uint8."""
    bits = draw(st.integers(0, 2 ** (HEIGHT * WIDTH) - 1))
    flat = [bits >> index & 1 for index in range(HEIGHT * WIDTH)]
    return np.array(flat, np.uint8).reshape(HEIGHT, WIDTH)


def compressed(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return dict(size=encoded['size'], counts=encoded['counts'].decode())


# ---- masks -------------------------------------------------------------------------------------


@settings(FUZZ, max_examples=200)
@given(binary_masks(), st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=4),
       st.integers(0, 20))  # fmt: skip
def test_accepted_rle_decodes_to_its_image(mask: np.ndarray, inserted: str, place: int) -> None:
    """Valid RLE is accepted; whatever is accepted, pycocotools decodes as written."""
    valid = compressed(mask)
    assert mask_problem(valid, [HEIGHT, WIDTH], True) is None
    text = valid['counts']
    changed = dict(valid, counts=text[:place] + inserted + text[place + 1 :])
    if mask_problem(changed, [HEIGHT, WIDTH], True) is None:  # others can crash pycocotools
        decoded = coco_mask.decode(dict(changed, counts=changed['counts'].encode()))
        assert decoded.shape == (HEIGHT, WIDTH) and set(np.unique(decoded)) <= {0, 1}
        assert coco_mask.area(dict(changed, counts=changed['counts'].encode())) == decoded.sum()


NUMBERS = st.one_of(st.integers(-5, 15), st.floats(-5, 15), st.just(math.nan), st.just('1'))
# pycocotools crashes the process on far corners
FAR = st.one_of(
    st.integers(-5, 15),
    st.floats(-2e4, 2e4),
    st.sampled_from([1e6, -1e6, 1.1e6, -1e9, 1e12, 1e308, 10**400, math.inf]),
)


@settings(FUZZ, max_examples=200)
@given(st.lists(st.lists(NUMBERS, max_size=9) | st.lists(FAR, max_size=9), min_size=1, max_size=3))
def test_accepted_polygons_are_read(polygons: list[list[Any]]) -> None:
    if mask_problem(polygons, [HEIGHT, WIDTH], True) is None:
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH))
        assert coco_mask.decode(rle).shape == (HEIGHT, WIDTH)


# ---- whole files -------------------------------------------------------------------------------


@st.composite
def annotations(draw: st.DrawFn) -> dict[str, Any]:
    """An entry, valid or not."""
    mask = draw(binary_masks())
    area = draw(st.one_of(st.just(int(mask.sum())), st.sampled_from([0, -1, 3.5, math.inf])))
    sound = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask))).tolist()
    box = draw(st.one_of(st.just(sound), st.lists(NUMBERS, min_size=3, max_size=5)))
    return dict(
        bbox=box,
        area=area,
        iscrowd=draw(st.sampled_from([0, 0, 1])),
        category_id=draw(st.sampled_from([1, 2, 2, 7])),
        image_id=draw(st.sampled_from([1, 2])),
        segmentation=compressed(mask),
        ignore=draw(st.booleans()),
    )


def coco_file(entries: list[dict[str, Any]]) -> dict[str, Any]:
    size = dict(height=HEIGHT, width=WIDTH)
    return dict(
        images=[dict(size, id=index, file_name=f'{index}.png') for index in (1, 2)],
        categories=[dict(id=1, name='ring'), dict(id=2, name='pin')],
        annotations=[dict(entry, id=index) for index, entry in enumerate(entries, start=1)],
    )


def check(path: Path) -> tuple[list[str], int]:
    """Errors in a file, and how many instances are kept."""
    file = CocoFile('ann_file', str(path), Findings(), masks=True, scored=True)
    kept = None
    if file.read() and check_ids(file) and check_references(file):
        kept = check_boxes(file, ['ring', 'pin'])
    if kept is None:
        return file.findings.errors, 0
    check_masks(file, kept)
    return file.findings.errors, int(kept.sum())


@settings(FUZZ, max_examples=60)
@given(st.lists(annotations(), min_size=1, max_size=4))
def test_accepted_files_are_loaded_and_scored(entries: list[dict[str, Any]]) -> None:
    """mmdet keeps as many instances as the check says, and perfect results score as such."""
    content = coco_file(entries)
    with TemporaryDirectory() as folder:
        path = Path(folder, 'all.json')
        path.write_text(json.dumps(content))
        problems, kept = check(path)
        sound = all(
            entry['category_id'] != 7
            and len(entry['bbox']) == 4
            and all(isinstance(x, (int, float)) and math.isfinite(x) for x in entry['bbox'])
            and math.isfinite(entry['area'])
            for entry in entries
        )
        if problems:
            assert not sound or not kept, problems
            return
        assert sound
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = CocoDataset(
                ann_file=str(path),
                data_prefix=dict(img=''),
                metainfo=dict(classes=('ring', 'pin')),
                lazy_init=True,
            )
            assert sum(len(image['instances']) for image in dataset.load_data_list()) == kept
            truth = COCO(str(path))
            results = [dict(entry, score=0.9) for entry in content['annotations']]
            evaluation = COCOeval(truth, truth.loadRes(results), 'segm')
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        assert evaluation.stats[0] == -1 or evaluation.stats[0] > 0


# ---- label maps --------------------------------------------------------------------------------


@settings(FUZZ, max_examples=30)
@given(st.lists(st.tuples(binary_masks(), st.sampled_from([1, 2])), max_size=4))
def test_label_maps_hold_the_masks_of_pycocotools(drawn: list[tuple[np.ndarray, int]]) -> None:
    """Each pixel has the category of the smallest mask over it, decoded by pycocotools."""
    entries = [
        dict(image_id=1, category_id=category, iscrowd=0, area=1, segmentation=compressed(mask))
        for mask, category in drawn
    ]
    with TemporaryDirectory() as folder:
        root = Path(folder)
        path = root / 'annotations' / 'instances_val2017.json'
        path.parent.mkdir()
        path.write_text(json.dumps(coco_file(entries)))
        (root / 'val2017').mkdir()
        for name in '12':
            Image.new('RGB', (WIDTH, HEIGHT)).save(root / 'val2017' / f'{name}.png')
        write_label_maps(root, root / 'out', ['val2017'])
        painted = np.asarray(Image.open(root / 'out' / 'annotations' / 'validation' / '1.png'))
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(path))
    masks = [(coco.annToMask(each), each['category_id']) for each in coco.anns.values()]
    for place in np.ndindex(HEIGHT, WIDTH):
        over = [(mask.sum(), category) for mask, category in masks if mask[place]]
        smallest = min((area for area, _ in over), default=0)
        allowed = {category for area, category in over if area == smallest} or {0}
        assert painted[place] in allowed, place
