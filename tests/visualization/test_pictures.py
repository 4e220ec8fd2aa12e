# SPDX-License-Identifier: Apache-2.0
"""Pictures show what they are given."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from mmfocal.analysis.run_log import RunLog
from mmfocal.visualization.contact_sheet import save_contact_sheet
from mmfocal.visualization.curves import save_curves
from mmfocal.visualization.predictions import save_predictions

SQUARE = [[8, 8, 24, 8, 24, 24, 8, 24]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two gray images with a square each."""
    for name in ('a.png', 'b.png'):
        matplotlib.image.imsave(tmp_path / name, np.full((32, 40, 3), 0.5))
    content = dict(
        images=[dict(id=i, file_name=f'{n}.png', width=40, height=32) for i, n in enumerate('ab')],
        annotations=[
            dict(
                id=i + 1,
                image_id=i,
                category_id=1,
                bbox=[8, 8, 16, 16],
                area=256,
                iscrowd=0,
                segmentation=SQUARE,
            )
            for i in range(2)
        ],
        categories=[dict(id=1, name='square')],
    )
    (tmp_path / 'instances.json').write_text(json.dumps(content))
    return tmp_path


def result(score: float) -> dict:
    return dict(image_id=0, category_id=1, bbox=[8, 8, 16, 16], score=score, segmentation=SQUARE)


def draw(data: Path, *results: dict) -> np.ndarray:
    (data / 'results.json').write_text(json.dumps(results))
    path = data / 'picture.png'
    save_predictions(data / 'instances.json', data / 'results.json', data, path)
    return matplotlib.image.imread(path)


def test_predictions_are_drawn_below_above_the_threshold(data: Path) -> None:
    none, unsure, sure = draw(data), draw(data, result(0.4)), draw(data, result(0.9))
    assert np.array_equal(none, unsure)
    rows = np.flatnonzero((none != sure).any(axis=(1, 2)))
    assert rows.min() > none.shape[0] // 2


def test_contact_sheet_draws_annotations(data: Path) -> None:
    save_contact_sheet(data / 'instances.json', data, data / 'sheet.png')
    content = json.loads((data / 'instances.json').read_text())
    (data / 'empty.json').write_text(json.dumps({**content, 'annotations': []}))
    save_contact_sheet(data / 'empty.json', data, data / 'empty.png')
    sheet, empty = (matplotlib.image.imread(data / f'{n}.png') for n in ('sheet', 'empty'))
    assert sheet.shape == empty.shape
    assert (sheet != empty).any()


def test_curves(tmp_path: Path) -> None:
    log = RunLog({1: dict(loss=3.0), 2: dict(loss=2.0)}, {2: {'coco/bbox_mAP': 0.5}})
    for name, metrics in dict(one=['coco/bbox_mAP'], none=['mIoU']).items():
        save_curves({'run': log}, metrics, tmp_path / f'{name}.png')
    one, none = (matplotlib.image.imread(tmp_path / f'{n}.png') for n in ('one', 'none'))
    assert (one != none).any()
