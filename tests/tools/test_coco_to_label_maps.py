# SPDX-License-Identifier: Apache-2.0
"""The command that turns COCO instances into label maps."""

import json
from collections.abc import Callable
from pathlib import Path
from runpy import run_path

import pytest
from PIL import Image


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A training image that one instance covers."""
    root = tmp_path / 'coco'
    (root / 'annotations').mkdir(parents=True)
    (root / 'train2017').mkdir()
    Image.new('RGB', (4, 4)).save(root / 'train2017' / 'a.jpg')
    instance = dict(id=1, image_id=1, category_id=7, segmentation=[[0, 0, 4, 0, 4, 4, 0, 4]])
    content = dict(
        images=[dict(id=1, file_name='a.jpg', height=4, width=4)],
        annotations=[instance],
        categories=[dict(id=7, name='train')],
    )
    (root / 'annotations/instances_train2017.json').write_text(json.dumps(content))
    return root


@pytest.fixture
def main(repo_root: Path) -> Callable[[list], None]:
    module = run_path(str(repo_root / 'tools' / 'data' / 'coco_to_label_maps.py'))
    return lambda *args: module['main']([str(arg) for arg in args])


def test_writes_both_kinds_once(coco, main, tmp_path, capsys):
    ade, stuff = tmp_path / 'ade', tmp_path / 'stuff'
    options = ['--label-maps', ade, '--stuff-maps', stuff, '--splits', 'train2017']
    main(coco, *options)
    printed = capsys.readouterr().out.replace('\n', '')
    assert f'{ade}: 1 label maps' in printed and f'{stuff}: 1 stuff maps' in printed
    assert Image.open(ade / 'annotations/training/a.png').getextrema() == (1, 1)
    assert Image.open(stuff / 'train2017/a.png').getextrema() == (6, 6)
    with pytest.raises(SystemExit, match=r'error: .*--overwrite'):
        main(coco, *options)
    main(coco, *options, '--overwrite')


def test_something_must_be_asked_for(coco, main, capsys):
    with pytest.raises(SystemExit, match='2'):
        main(coco)
    assert 'nothing to write' in capsys.readouterr().err
