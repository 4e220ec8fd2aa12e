# SPDX-License-Identifier: Apache-2.0
"""Images leave the data pipelines with sizes, crops and views of the published recipes."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import mmcv
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmengine.runner import set_random_seed

from tests.helpers.config_suite import ROWS, has_masks, load, method_of

HEIGHT, WIDTH = 480, 640
CROPS = range(480, 801, 32)


class Sizes(NamedTuple):
    """Short sides of training images, and shapes of test images and of views without flip."""

    train: Collection[int]
    test: tuple[int, int]
    views: list[tuple[int, int]]


def by_short_side(*sides: int) -> list[tuple[int, int]]:
    return [(side, int(side * WIDTH / HEIGHT + 0.5)) for side in sides]


VIEWS_800 = by_short_side(640, 800, 960)
ATSS_VIEWS = by_short_side(
    *(400, 500, 600, 640, 700, 900, 1000, 1100, 1200, 1300, 1400, 1800),
)
# One config of each pipeline. The image's ratio of 3 : 4 limits HTC++ and DyHead to 1200 rows.
PIPELINES = {
    'classification/focal_t_in1k': Sizes([224], (224, 224), [(224, 224)]),
    'classification/focal_l_in22k': Sizes([224], (224, 224), [(224, 224)]),
    'detection/focal_t_retinanet_1x': Sizes([800], (800, 1067), VIEWS_800),
    'detection/focal_t_retinanet_3x': Sizes(CROPS, (800, 1067), VIEWS_800),
    'detection/focal_t_maskrcnn_1x': Sizes([800], (800, 1067), VIEWS_800),
    'detection/focal_t_maskrcnn_3x': Sizes(CROPS, (800, 1067), VIEWS_800),
    'detection/focal_t_reppointsv2_3x': Sizes(range(480, 961, 32), (800, 1067), VIEWS_800),
    'detection/focal_t_htcpp_3x': Sizes(
        range(400, 1201), (1200, 1600), by_short_side(1000, 1200, 1200, 1350)
    ),
    'detection/focal_l_dyhead_2x': Sizes(range(480, 1201), (1200, 1600), ATSS_VIEWS),
    'segmentation/focal_t_upernet_160k': Sizes(
        range(256, 513), (512, 683), by_short_side(256, 384, 512, 640, 768, 896)
    ),
    'segmentation/focal_l_upernet_640_160k': Sizes(
        range(320, 641), (640, 853), by_short_side(320, 480, 640, 800, 960, 1120)
    ),
}


def train_pipeline(cfg: Config) -> list[dict]:
    dataset = cfg.train_dataloader.dataset
    return dataset.get('dataset', dataset).pipeline


def run(pipeline: list[dict], cfg: Config, sample: dict) -> dict:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return Compose(pipeline)(dict(sample))


def shapes(packed: dict) -> list[tuple[int, int]]:
    inputs = packed['inputs']
    return [tuple(image.shape[1:]) for image in (inputs if isinstance(inputs, list) else [inputs])]


@pytest.fixture(scope='module')
def sample(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """An image with two instances, a label map and a class, as the data sets describe them."""
    folder: Path = tmp_path_factory.mktemp('image')
    generator = np.random.default_rng(0)
    mmcv.imwrite(
        generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8), str(folder / 'image.png')
    )
    mmcv.imwrite(
        generator.integers(0, 151, (HEIGHT, WIDTH), dtype=np.uint8), str(folder / 'labels.png')
    )
    boxes = ([40, 60, 340, 400], [300, 100, 620, 470])
    return dict(
        img_path=str(folder / 'image.png'),
        seg_map_path=str(folder / 'labels.png'),
        **dict(img_id=0, height=HEIGHT, width=WIDTH, gt_label=3),
        **dict(seg_fields=[], reduce_zero_label=True, label_map=None),
        instances=[
            dict(bbox=[x1, y1, x2, y2], bbox_label=7, ignore_flag=0, mask=[[*corners]])
            for x1, y1, x2, y2 in boxes
            for corners in [(x1, y1, x2, y1, x2, y2, x1, y2)]
        ],
    )


def test_no_pipeline_is_left_out():
    known = {repr(train_pipeline(load(name))) for name in PIPELINES}
    unknown = [name for name in ROWS if repr(train_pipeline(load(name))) not in known]
    assert not unknown


@pytest.mark.parametrize('name', PIPELINES)
def test_training_images(name, sample):
    cfg = load(name)
    pipeline = train_pipeline(cfg)
    if method_of(name) == 'htcpp':
        pytest.importorskip('instaboostfast')
    kinds = [step['type'] for step in pipeline]
    mirror = pipeline[kinds.index('RandomFlip')]
    assert mirror['prob'] == 0.5
    set_random_seed(0)
    found = []
    for _ in range(6):
        packed = run(pipeline, cfg, sample)
        found += [min(shape) for shape in shapes(packed)]
        if cfg.default_scope == 'mmdet':
            truth = packed['data_samples']
            assert ('masks' in truth.gt_instances) == (has_masks(cfg))
            assert ('gt_sem_seg' in truth) == (method_of(name) == 'htcpp')
    allowed = PIPELINES[name].train
    assert set(found) <= set(allowed)
    assert len(set(found)) > 1 or len(allowed) == 1


@pytest.mark.parametrize('name', PIPELINES)
def test_test_images(name, sample):
    cfg = load(name)
    if cfg.val_dataloader is None:
        return
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert shapes(run(loader.dataset.pipeline, cfg, sample)) == [PIPELINES[name].test]


@pytest.mark.parametrize('name', PIPELINES)
def test_views(name, sample):
    """Each size plain and mirrored."""
    cfg = load(name)
    packed = run(cfg.tta_pipeline, cfg, sample)
    assert sorted(shapes(packed)) == sorted(2 * PIPELINES[name].views)
    flips = [truth.flip for truth in packed['data_samples']]
    assert flips.count(True) == flips.count(False) == len(PIPELINES[name].views)


@pytest.mark.parametrize('name', [name for name in PIPELINES if name.endswith('_3x')])
def test_half_of_the_images_are_cropped(name):
    choices = [step for step in train_pipeline(load(name)) if step.type == 'RandomChoice']
    if method_of(name) in ('reppointsv2', 'htcpp'):
        assert not choices
        return
    (choice,) = choices
    assert 'prob' not in choice
    plain, cropped = choice.transforms
    assert [step.type for step in plain] == ['RandomChoiceResize']
    shrink, crop, resize = cropped
    assert resize == plain[0]
    assert [short for short, _ in resize.scales] == list(CROPS)
    assert {long for _, long in resize.scales + shrink.scales} == {1333}
    assert [short for short, _ in shrink.scales] == [400, 500, 600]
    assert (tuple(crop.crop_size), crop.crop_type, crop.allow_negative_crop) == (
        *((384, 600), 'absolute_range', True),
    )


def test_repeated_and_pasted():
    dyhead = load('detection/focal_l_dyhead_2x').train_dataloader.dataset
    assert (dyhead.type, dyhead.times) == ('RepeatDataset', 2)
    kinds = [step.type for step in train_pipeline(load('detection/focal_t_htcpp_3x'))]
    assert kinds.index('RepairedInstaBoost') < kinds.index('LoadAnnotations')


def test_classification_augments_as_the_released_code():
    steps = {step.type: step for step in train_pipeline(load('classification/focal_t_in1k'))}
    augment, erase = steps['RandAugment'], steps['RandomErasing']
    assert (augment.policies, augment.num_policies) == ('timm_increasing', 2)
    assert (augment.magnitude_level, augment.magnitude_std) == (9, 0.5)
    assert (erase.erase_prob, erase.mode) == (0.25, 'rand')
    assert steps['RandomResizedCrop'].interpolation == 'bicubic'


@pytest.mark.parametrize('name', ROWS)
def test_padding(name):
    cfg = load(name)
    if cfg.default_scope == 'mmdet':
        divisor = 128 if method_of(name) == 'dyhead' else 32
        assert cfg.model.data_preprocessor.pad_size_divisor == divisor
    preprocessor = cfg.get('data_preprocessor') or cfg.model.data_preprocessor
    assert list(preprocessor['mean']) == [123.675, 116.28, 103.53]
    assert list(preprocessor['std']) == [58.395, 57.12, 57.375]
