# SPDX-License-Identifier: Apache-2.0
"""Nothing that COCO, ADE20K and ImageNet contain is refused, with the shipped configs."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as coco_mask

from mmfocal.engine import InputError, check_inputs, read_config
from mmfocal.engine.checks import check_shape
from mmfocal.engine.checks.settings import check_metrics, check_monitors
from mmfocal.engine.findings import Findings
from mmfocal.errors import MissingFileError

HEIGHT, WIDTH = 36, 48
CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


def check(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a shipped config in a folder whose ``data/`` holds the data."""
    monkeypatch.chdir(data)
    check_inputs(Config.fromfile(CONFIGS / f'{name}.py'), ('train', 'val', 'test'))


# ---- COCO --------------------------------------------------------------------------------------


def objects() -> list[dict[str, Any]]:
    """Return COCO's instances by image; the third image has none."""
    top_half = np.asfortranarray(np.arange(HEIGHT)[:, None] < HEIGHT // 2 + np.zeros(WIDTH), 'u1')
    compressed = coco_mask.encode(top_half)
    crowd = dict(counts=[HEIGHT * 2, HEIGHT * 3, HEIGHT * (WIDTH - 5)], size=[HEIGHT, WIDTH])
    whole = [0.0, 0.0, WIDTH, 0.0, WIDTH, HEIGHT, 0.0, HEIGHT]
    two_parts = [[1, 1, 9, 1, 9, 9], [20.55, 20.12, 30, 20, 30, 30.5, 21, 31]]
    text = dict(counts=compressed['counts'].decode(), size=compressed['size'])
    return [
        dict(image_id=9, bbox=[0, 0, WIDTH, HEIGHT], segmentation=[whole]),
        dict(image_id=9, bbox=[1, 1, 29, 30], segmentation=two_parts),
        dict(image_id=9, bbox=[2, 0, 3, HEIGHT], segmentation=crowd, iscrowd=1),
        dict(image_id=9, bbox=[WIDTH - 9.5, 3, 10.3, 8], segmentation=[[39, 3, 49.3, 3, 44, 11]]),
        dict(image_id=581929, bbox=[5, 5, 0.6, 0.4], area=0.1, segmentation=[[5, 5, 6, 5, 5, 6]]),
        dict(image_id=581929, bbox=[0, 0, WIDTH, HEIGHT // 2], segmentation=text),
        dict(image_id=42, bbox=[2, 0, 3, HEIGHT], segmentation=crowd, iscrowd=1),
    ]


@pytest.fixture(scope='module')
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``data/coco``: 4 images per split, 80 categories with gaps between their ids."""
    classes = pytest.importorskip('mmdet.datasets').CocoDataset.METAINFO['classes']
    root = tmp_path_factory.mktemp('coco')
    data = root / 'data/coco'
    modes = {9: 'RGB', 42: 'L', 581929: 'CMYK', 7: 'RGB'}
    size = dict(height=HEIGHT, width=WIDTH)
    names = {key: f'{key:012}' for key in modes}
    content = dict(
        info=dict(year=2017),
        licenses=[],
        images=[dict(size, id=key, file_name=f'{name}.jpg', license=1)
                for key, name in names.items()],
        annotations=[
            dict(dict(area=50.25, iscrowd=0), **each, id=900100000000 + index,
                 category_id=(index * 3) % 90 + 1)
            for index, each in enumerate(objects())
        ],
        categories=[dict(id=index + index // 10 + 1, name=name, supercategory='thing')
                    for index, name in enumerate(classes)],
    )  # fmt: skip
    known = [each['id'] for each in content['categories']]
    for annotation in content['annotations']:
        annotation['category_id'] = known[annotation['category_id'] % 80]
    for split in ('train2017', 'val2017'):
        for folder in (data / split, data / 'stuffthingmaps' / split, data / 'annotations'):
            folder.mkdir(parents=True, exist_ok=True)
        for key, mode in modes.items():
            Image.new(mode, (WIDTH, HEIGHT)).save(data / split / f'{names[key]}.jpg')
            stuff = np.resize([0, 90, 182, 255], (HEIGHT, WIDTH)).astype(np.uint8)
            Image.fromarray(stuff).save(data / 'stuffthingmaps' / split / f'{names[key]}.png')
        (data / f'annotations/instances_{split}.json').write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    'name',
    [
        'focal_t_maskrcnn_3x', 'focal_b_cascade_3x', 'focal_b_retinanet_3x',
        'focal_b_reppointsv2_3x', 'focal_l_dyhead_2x', 'focal_l_htcpp_3x',
    ],
)  # fmt: skip
def test_what_coco_contains_is_accepted(coco, monkeypatch, capsys, name):
    check(f'detection/{name}', coco, monkeypatch)
    assert 'WARNING' not in capsys.readouterr().out


def test_real_photographs_of_coco_are_accepted(repo_root, tmp_path, monkeypatch, capsys):
    coco_tiny = repo_root.parent / 'shared' / 'data' / 'coco_tiny'
    if not coco_tiny.is_dir():
        pytest.skip(f'{coco_tiny} is absent')
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/coco').symlink_to(coco_tiny)
    check('detection/focal_t_maskrcnn_3x', tmp_path, monkeypatch)
    assert 'WARNING' not in capsys.readouterr().out


# ---- ADE20K ------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['focal_t_upernet_160k', 'focal_l_upernet_640_160k'])
def test_what_ade20k_contains_is_accepted(tmp_path, monkeypatch, capsys, name):
    """150 classes from 1 on; 0 is none of them. A map may hold nothing else."""
    pytest.importorskip('mmseg')
    data = tmp_path / 'data/ade/ADEChallengeData2016'
    rng = np.random.default_rng(0)
    for split in ('training', 'validation'):
        for folder in ('images', 'annotations'):
            (data / folder / split).mkdir(parents=True)
        for index, values in enumerate([range(151), [0], rng.integers(0, 151, 9), [12, 150]]):
            labels = np.resize(np.array(list(values)), (HEIGHT, WIDTH)).astype(np.uint8)
            stem = f'ADE_{split}_{index:08}'
            Image.new('RGB', (WIDTH, HEIGHT)).save(data / 'images' / split / f'{stem}.jpg')
            Image.fromarray(labels).save(data / 'annotations' / split / f'{stem}.png')
    check(f'segmentation/{name}', tmp_path, monkeypatch)
    assert 'WARNING' not in capsys.readouterr().out


# ---- ImageNet ----------------------------------------------------------------------------------


def test_what_imagenet_contains_is_accepted(tmp_path, monkeypatch, capsys):
    """Color, CMYK and gray pictures, a PNG named .JPEG, in 1000 folders."""
    pytest.importorskip('mmpretrain')
    kinds = [('RGB', 'JPEG'), ('CMYK', 'JPEG'), ('L', 'JPEG'), ('RGB', 'PNG')]
    pictures = [tmp_path / f'{mode}.{kind}' for mode, kind in kinds]
    for path, (mode, kind) in zip(pictures, kinds, strict=True):
        Image.new(mode, (WIDTH, HEIGHT)).save(path, kind)
    for split in ('train', 'val'):
        for index in range(1000):
            folder = tmp_path / f'data/imagenet/{split}/n{1440764 + 7 * index:08}'
            folder.mkdir(parents=True)
            os.link(pictures[index % len(pictures)], folder / f'{folder.name}_{index}.JPEG')
    check('classification/focal_t_in1k', tmp_path, monkeypatch)
    assert 'WARNING' not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize('host', ['mmdet', 'mmseg', 'mmpretrain'])
def test_configs_of_the_hosts_are_accepted(host):
    """Of each folder of models, the first three configs: types, metrics and names of scores."""
    root = Path(pytest.importorskip(host).__file__).parent / '.mim' / 'configs'
    folders = [folder for folder in sorted(root.iterdir()) if folder.name != '_base_']
    paths = [path for folder in folders for path in sorted(folder.glob('*.py'))[:3]]
    paths += sorted((root / '_base_').rglob('v3det.py'))
    refused = {}
    for path in paths:
        try:
            cfg = read_config(path)
        except (InputError, MissingFileError):  # some need other packages, or are broken
            continue
        findings = Findings(quiet=True)
        try:
            check_shape(cfg)
        except InputError as error:
            refused[path.name] = str(error)
        for split in ('val', 'test'):
            check_metrics(cfg, split, findings)
        check_monitors(cfg, findings)
        if findings.errors:
            refused[path.name] = findings.errors
    assert len(paths) > 100 and not refused
