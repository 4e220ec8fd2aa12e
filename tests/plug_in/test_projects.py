# SPDX-License-Identifier: Apache-2.0
"""The configs of ``docs/plug_in.md`` train in a folder of their own, by their host's script."""

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from mmfocal.datasets.digit_scenes import DigitSceneParams, build

pytestmark = [pytest.mark.slow, pytest.mark.plug_in]

PAGE = Path(__file__).parents[2] / 'docs/plug_in.md'
RECIPES = dict(re.findall(r'```python\n# (\w+)\.py\n(.+?)```', PAGE.read_text(), re.DOTALL))
STEPS = 2

# Settings of every project below: two steps, no validation, no checkpoint of 500 MB.
SHORT = f"""
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters={STEPS}, val_interval=9)
val_cfg = val_dataloader = val_evaluator = test_cfg = test_dataloader = test_evaluator = None
param_scheduler = None
custom_hooks = []
default_hooks = dict(checkpoint=dict(interval=-1), logger=dict(interval=1))
"""
DETECTION = """
train_dataloader = dict(
    _delete_=True,
    batch_size=2,
    num_workers=0,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        type='CocoDataset',
        metainfo=dict(classes=tuple('0123456789')),
        data_root='data/digit_scenes',
        ann_file='annotations/named.json',
        data_prefix=dict(img='train/'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs'),
        ],
    ),
)
"""
SEGMENTATION = """
train_dataloader = dict(
    _delete_=True,
    batch_size=2,
    num_workers=0,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        type='BaseSegDataset',
        metainfo=dict(classes=tuple('0123456789')),
        reduce_zero_label=True,
        data_root='data/digit_scenes',
        data_prefix=dict(img_path='train', seg_map_path='annotations/train'),
        img_suffix='.png',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', reduce_zero_label=True),
            dict(type='PackSegInputs'),
        ],
    ),
)
model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=dict(init_cfg=None),
    decode_head=dict(num_classes=10, norm_cfg=dict(type='BN')),  # SyncBN needs GPUs
)
"""
CLASSIFICATION = """
train_dataloader = dict(
    _delete_=True,
    batch_size=4,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root='data/digit_scenes/classification',
        data_prefix='train',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(64, 64)),
            dict(type='PackInputs'),
        ],
    ),
)
"""
ROTATED = """
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    batch_sampler=None,
    sampler=dict(_delete_=True, type='InfiniteSampler'),
    dataset=dict(
        data_root='data/digit_scenes/',
        metainfo=dict(classes=tuple('0123456789')),
        ann_file='rotated/',
        data_prefix=dict(img_path='train/'),
        filter_cfg=None,
    ),
)
model = dict(backbone=dict(init_cfg=None), bbox_head=dict(num_classes=10))
"""
POSE = """
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_delete_=True, type='InfiniteSampler'),
    dataset=dict(
        data_root='data/digit_scenes/',
        ann_file='annotations/keypoints.json',
        data_prefix=dict(img='train/'),
    ),
)
"""
RANDOM = 'model = dict(backbone=dict(init_cfg=None))\n'
TWO_STAGE = """
model = dict(
    backbone=dict(init_cfg=None),
    roi_head=dict(bbox_head=dict(num_classes=10)),
)
"""
# a picture of 160 pixels has fewer tokens than 900 queries to choose among
DINO = """
model = dict(num_queries=100, backbone=dict(init_cfg=None), bbox_head=dict(num_classes=10))
"""
# MMEngine's AmpOptimWrapper needs a GPU
FULL_PRECISION = """
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4)
)
"""
MASK2FORMER = """
model = dict(
    backbone=dict(init_cfg=None),
    data_preprocessor=dict(batch_augments=None),
    panoptic_head=dict(num_things_classes=10, loss_cls=dict(class_weight=[1.0] * 10 + [0.1])),
    panoptic_fusion_head=dict(num_things_classes=10),
)
"""
PROJECTS = {
    'faster_rcnn': ('mmdet', DETECTION + TWO_STAGE),
    'mask2former': ('mmdet', DETECTION + MASK2FORMER),
    'dino': ('mmdet', DETECTION + DINO),
    'segformer': ('mmseg', SEGMENTATION),
    'semantic_fpn': ('mmseg', SEGMENTATION + "model['neck'] = dict(norm_cfg=None)\n"),
    'classifier': ('mmpretrain', CLASSIFICATION),
    'rotated_retinanet': ('mmrotate', ROTATED),
    'pose': ('mmpose', POSE),
}
Run = Callable[..., str]


def _name_categories(root: Path) -> None:
    """Write the annotations under the names of the recipes' classes, and with key points."""
    content = json.loads((root / 'annotations/instances_train.json').read_text())
    for category in content['categories']:
        category['name'] = str(category['id'] - 1)
    (root / 'annotations/named.json').write_text(json.dumps(content))
    for annotation in content['annotations']:
        x, y, w, h = annotation['bbox']
        points = [(x + w * i / 16, y + h * i / 16, 2) for i in range(17)]
        annotation.update(keypoints=[v for point in points for v in point], num_keypoints=17)
        annotation['category_id'] = 1
    content['categories'] = [dict(id=1, name='person')]
    (root / 'annotations/keypoints.json').write_text(json.dumps(content))


def _write_corners(root: Path) -> None:
    """Write the boxes as DOTA does: eight coordinates, class, difficulty."""
    coco = COCO(root / 'annotations/named.json')
    (root / 'rotated').mkdir()
    for image in coco.loadImgs(coco.getImgIds()):
        lines = []
        for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
            x, y, w, h = annotation['bbox']
            corners = (x, y, x + w, y, x + w, y + h, x, y + h)
            lines.append(f'{" ".join(map(str, corners))} {annotation["category_id"] - 1} 0\n')
        path = root / 'rotated' / Path(image['file_name']).with_suffix('.txt').name
        path.write_text(''.join(lines))


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('plug_in') / 'digit_scenes'
    build(root, DigitSceneParams(train=4, val=1))
    _name_categories(root)
    _write_corners(root)
    return root


@pytest.fixture
def project(tmp_path: Path, scenes: Path) -> Path:
    """A folder with the files of ``docs/plug_in.md`` and a few digit scenes."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/digit_scenes').symlink_to(scenes, target_is_directory=True)
    for name, code in RECIPES.items():
        (tmp_path / f'{name}.py').write_text(code)
    return tmp_path


@pytest.fixture
def wheel(tmp_path: Path, repo_root: Path) -> Path:
    """A folder with mmfocal as a wheel installs it; building writes beside the sources."""
    source, target = tmp_path / 'source', tmp_path / 'installed'
    ignored = shutil.ignore_patterns('.*', 'build', 'work_dirs', 'data', '__pycache__')
    shutil.copytree(repo_root, source, ignore=ignored)
    options = ['--quiet', '--no-deps', '--no-build-isolation', '--target', target, source]
    run_python(tmp_path, '-m', 'pip', 'install', *options)
    return target


def run_python(folder: Path, *arguments: str | Path) -> str:
    """Run Python in a project; returns what it printed."""
    env = {**os.environ, 'OMP_NUM_THREADS': '2', 'CUDA_VISIBLE_DEVICES': ''}
    env.pop(
        'TRITON_INTERPRET', None
    )  # which projects do not set: kernels are registered otherwise
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def train(folder: Path, host: str, config: str) -> None:
    """Train by the host's own script; every step must have a finite loss."""
    package = Path(importlib.util.find_spec(host).origin).parent
    run_python(folder, package / '.mim/tools/train.py', config, '--work-dir', 'run')
    (log,) = folder.glob('run/*/vis_data/scalars.json')
    losses = [json.loads(line)['loss'] for line in log.read_text().splitlines()]
    assert len(losses) == STEPS and all(map(math.isfinite, losses)), losses
    dumped = (folder / 'run' / config).read_text()
    assert 'FocalTransformer' in dumped


def test_every_recipe_is_run() -> None:
    assert {*PROJECTS, 'inherited', 'plain_pytorch', 'lazy'} == set(RECIPES)


def test_inherits_from_a_wheel(
    project: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip('mmdet')
    monkeypatch.setenv('PYTHONPATH', str(wheel))
    where = run_python(project, '-c', 'import mmfocal; print(mmfocal.__file__)')
    assert where.strip().splitlines()[-1] == str(wheel / 'mmfocal/__init__.py')
    own = DETECTION + RANDOM + FULL_PRECISION
    (project / 'mine.py').write_text(f"_base_ = './inherited.py'\n{SHORT}{own}")
    train(project, 'mmdet', 'mine.py')


@pytest.mark.parametrize('name', PROJECTS)
def test_host_trains(name: str, project: Path) -> None:
    host, own = PROJECTS[name]
    pytest.importorskip(host)
    (project / 'mine.py').write_text(f"_base_ = './{name}.py'\n{SHORT}{own}")
    train(project, host, 'mine.py')


def test_lazy_config(project: Path) -> None:
    pytest.importorskip('mmpretrain')
    own = "default_hooks = dict(logger=dict(type='LoggerHook', interval=1))\n"
    with (project / 'lazy.py').open('a') as file:
        file.write(own)
    train(project, 'mmpretrain', 'lazy.py')


def test_plain_pytorch(project: Path) -> None:
    blocked = dict.fromkeys(['mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'triton'])
    code = f"import sys, runpy; sys.modules.update({blocked}); runpy.run_path('plain_pytorch.py')"
    losses = re.findall(r'^loss (\d+\.\d+)$', run_python(project, '-c', code), re.MULTILINE)
    assert len(losses) == STEPS
