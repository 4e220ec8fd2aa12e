# SPDX-License-Identifier: Apache-2.0
"""The made-up data of the start-up check's benchmark pass the check, and a row per check."""

import checks
import numpy as np
import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')


def test_measures_all_checks(tmp_path, read_rows):
    csv = tmp_path / 'checks.csv'
    checks.main(['--scale', '0.001', '--rounds', '1', '--csv', str(csv)])
    rows = read_rows(csv)
    assert [(row['data'], row['splits']) for row in rows] == [
        ('coco', 'train'),
        ('coco', 'train+val'),
        ('imagenet', 'train'),
        ('imagenet', 'train+val'),
    ]
    assert all(float(row['ms']) > 0 for row in rows)


def test_boxes_are_the_bounds_of_the_outlines():
    objects = list(checks._objects(2 * checks.CROWDS, 3))
    outlines = [each for each in objects if not each['iscrowd']]
    assert len(outlines) == len(objects) - 2
    for each in outlines:
        corners = np.reshape(each['segmentation'][0], (-1, 2))
        low, high = corners.min(0), corners.max(0)
        np.testing.assert_allclose(each['bbox'], [*low, *(high - low)], atol=0.02)
