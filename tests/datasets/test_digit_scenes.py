# SPDX-License-Identifier: Apache-2.0
"""Digit scenes: round trip of annotations, statistics, determinism, treatment of folders."""

import json
import runpy
import shutil
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from scipy.ndimage import binary_fill_holes

from mmfocal.datasets.digit_scenes import (
    GROUND,
    MIN_VISIBLE,
    DigitSceneParams,
    Scene,
    build,
    coco_annotations,
    has_holes,
    label_map,
    mask_to_polygons,
    mask_to_rle,
    render_scene,
    scene_rng,
    stuff_map,
)
from mmfocal.datasets.digits import CLASSES, SPLITS, load_scans, render_crop, render_digit

SMALL = DigitSceneParams(train=5, val=3, crop_size=16, crop_views=2, seed=7)
TOOL = Path(__file__).parents[2] / 'tools/data/make_digit_scenes.py'


@pytest.fixture(scope='module')
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set; tests must not change it."""
    root = tmp_path_factory.mktemp('digits') / 'small'
    assert build(root, SMALL)
    return root


@pytest.fixture(scope='module')
def default_val() -> list[Scene]:
    """The validation scenes of the default parameters."""
    params, scans = DigitSceneParams(), load_scans('val')
    return [render_scene(scene_rng(0, 'val', i), scans, params) for i in range(params.val)]


def files(root: Path) -> dict[str, bytes]:
    """Content of each file under ``root`` by its relative path."""
    paths = sorted(path for path in root.rglob('*') if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def read(path: Path) -> np.ndarray:
    """Pixels of an image as they are in the file."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None, path
    return pixels


def raster(polygons: list[list[int]], shape: tuple[int, int]) -> np.ndarray:
    """The mask that pycocotools makes of polygons."""
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, *shape))) == 1


class Interrupted(Exception):
    """Raised by :func:`stop_early`."""


def stop_early(items: Iterable, description: str) -> Iterable:
    """A progress display during which the process is interrupted after two scenes."""
    for count, item in enumerate(items):
        if count == 2:
            raise Interrupted
        yield item


# Annotations


@pytest.mark.parametrize('split', SPLITS)
def test_annotations_survive_the_round_trip(small_set: Path, split: str) -> None:
    coco = COCO(str(small_set / f'annotations/instances_{split}.json'))
    assert len(coco.imgs) == getattr(SMALL, split)
    assert [coco.cats[i]['name'] for i in range(1, 11)] == list(CLASSES)
    for image_id, image in coco.imgs.items():
        pixels = read(small_set / split / image['file_name'])
        assert pixels.shape == (image['height'], image['width'], 3)
        labels = np.zeros(pixels.shape[:2], np.uint8)
        for annotation in coco.imgToAnns[image_id]:
            mask = coco.annToMask(annotation) == 1
            assert mask.sum() == annotation['area'] > 0
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert annotation['bbox'] == [columns[0], rows[0], width, height]
            assert not labels[mask].any(), 'two instances share a pixel'
            labels[mask] = annotation['category_id']
        assert np.array_equal(read(small_set / 'annotations' / split / image['file_name']), labels)
        stuff = read(small_set / 'stuffthingmaps' / split / image['file_name'])
        assert np.array_equal(stuff, np.where(labels == 0, GROUND, labels.astype(int) - 1))


def test_both_mask_forms_are_used_and_mean_the_mask(default_val: list[Scene]) -> None:
    polygons = 0
    for scene in default_val:
        for mask, annotation in zip(scene.masks, coco_annotations(scene, 0, 1)):
            segmentation = annotation['segmentation']
            if isinstance(segmentation, list):
                polygons += 1
                assert np.array_equal(raster(segmentation, mask.shape), mask)
            assert np.array_equal(mask_utils.decode(mask_to_rle(mask)) == 1, mask)
    total = sum(len(scene.labels) for scene in default_val)
    assert 0.5 < polygons / total < 0.9


@pytest.mark.parametrize('density', [0.02, 0.3, 0.7, 0.98])
def test_polygons_and_rle_agree_on_any_mask(density: float) -> None:
    """Single pixels, pixels that touch at corners, holes, and masks that touch the border."""
    rng = np.random.default_rng(int(100 * density))
    for _ in range(50):
        mask = rng.random(rng.integers(2, 24, 2)) < density
        mask[rng.integers(mask.shape[0]), rng.integers(mask.shape[1])] = True
        # pixels that are connected with the border through edges (not corners) are outside
        filled = binary_fill_holes(mask)
        assert has_holes(mask) == (filled != mask).any()
        assert np.array_equal(raster(mask_to_polygons(mask), mask.shape), filled)
        assert np.array_equal(mask_utils.decode(mask_to_rle(mask)) == 1, mask)


# Scenes


def test_statistics_of_the_default_validation_set(default_val: list[Scene]) -> None:
    counts = [len(scene.labels) for scene in default_val]
    sizes = np.concatenate([scene.sizes for scene in default_val])
    visible = np.concatenate([scene.visible for scene in default_val])
    labels = np.concatenate([scene.labels for scene in default_val])
    assert len(default_val) >= 200 and default_val[0].image.shape == (160, 160, 3)
    assert (min(counts), max(counts)) == (4, 8)
    assert (sizes.min(), sizes.max()) == (20, 56)
    quarters = np.histogram(sizes, [20, 29.25, 38.5, 47.75, 57])[0] / len(sizes)
    assert quarters.min() > 0.2, 'sizes are uniform'
    assert visible.min() >= MIN_VISIBLE and (visible <= 0.98).mean() >= 0.25
    assert np.bincount(labels, minlength=10).min() > 0.07 * len(labels)


def test_the_ground_is_textured_and_the_digits_stand_out(default_val: list[Scene]) -> None:
    for scene in default_val:
        ground = scene.image[~scene.masks.any(0)].astype(float)
        assert ground.std(0).min() > 6
        for mask in scene.masks:
            around = cv2.dilate(mask.astype(np.uint8), np.ones((13, 13))) == 1
            around &= ~cv2.dilate(scene.masks.any(0).astype(np.uint8), np.ones((3, 3))).astype(
                bool
            )
            if around.any():
                ink = np.median(scene.image[mask].astype(float), 0)
                assert np.linalg.norm(ink - np.median(scene.image[around], 0)) > 40


def test_a_digit_has_the_size_asked_for() -> None:
    scans = load_scans('val')
    for size in range(8, 90):
        rng = np.random.default_rng(size)
        for scan in scans.images[rng.integers(len(scans.ids), size=12)]:
            assert max((render_digit(rng, scan, size) >= 0.5).shape) == size
            assert max(np.ptp(np.nonzero(render_digit(rng, scan, size) >= 0.5), 1)) == size - 1


def test_single_digits_are_light_on_dark_differ_and_are_easy_to_tell_apart() -> None:
    """A nearest-neighbor classifier of shrunk gray images is mostly right."""
    scans = {split: load_scans(split) for split in SPLITS}
    pictures = {
        split: [render_crop(np.random.default_rng(i), s.images[i], 64) for i in range(200)]
        for split, s in scans.items()
    }
    rng = np.random.default_rng(0)
    one, other = (render_crop(rng, scans['val'].images[0], 64) for _ in range(2))
    assert (one != other).any()
    small = {k: np.stack([cv2.resize(p.mean(2), (8, 8)) for p in v]) for k, v in pictures.items()}
    for crops in pictures.values():
        for crop in crops:
            board = np.median(crop, (0, 1)).mean()
            assert board < 100 and (crop.mean(2) > 150).mean() > 0.05
    distance = np.linalg.norm(small['val'][:, None] - small['train'][None], axis=(2, 3))
    guess = scans['train'].labels[:200][distance.argmin(1)]
    assert (guess == scans['val'].labels[:200]).mean() > 0.6


def test_splits_share_no_scan(small_set: Path, default_val: list[Scene]) -> None:
    train, val = load_scans('train'), load_scans('val')
    assert not set(train.ids) & set(val.ids)
    assert set(train.ids) | set(val.ids) == set(range(1797))
    for label in range(10):
        assert (val.labels == label).sum() == pytest.approx(0.2 * 1797 / 10, abs=3)
    assert {scan for scene in default_val for scan in scene.scans} <= set(val.ids)
    for split, scans in zip(SPLITS, (train, val)):
        content = json.loads((small_set / f'annotations/instances_{split}.json').read_text())
        of_scan = dict(zip(scans.ids, scans.labels))
        for annotation in content['annotations']:
            assert of_scan[annotation['scan']] == annotation['category_id'] - 1
        crops = list((small_set / 'classification' / split).rglob('*.png'))
        views = range(2) if split == 'train' else range(1)
        assert {path.stem: path.parent.name for path in crops} == {
            f'{scan:04d}_{view}': CLASSES[label]
            for scan, label in of_scan.items()
            for view in views
        }
        assert read(crops[0]).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ('image_size', 'digits', 'digit_size'),
    [((8, 8), (1, 1), (8, 8)), ((33, 257), (1, 3), (9, 33)), ((480, 200), (40, 40), (10, 60))],
)
def test_any_size_and_number(
    image_size: tuple[int, int], digits: tuple[int, int], digit_size: tuple[int, int]
) -> None:
    params = DigitSceneParams(image_size=image_size, digits=digits, digit_size=digit_size)
    for index in range(4):
        scene = render_scene(scene_rng(1, 'train', index), load_scans('train'), params)
        assert scene.image.shape == (*image_size, 3) and scene.image.dtype == np.uint8
        assert scene.masks.shape == (len(scene.labels), *image_size)
        assert digits[0] <= len(scene.labels) <= digits[1]
        assert digit_size[0] <= scene.sizes.min() and scene.sizes.max() <= digit_size[1]
        assert scene.masks.any((1, 2)).all() and scene.visible.min() >= MIN_VISIBLE
        assert label_map(scene).dtype == stuff_map(scene).dtype == np.uint8


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'train': 0}, 'train=0'),
        ({'val': 1.5}, 'val=1.5'),
        ({'seed': -1}, 'seed=-1'),
        ({'crop_size': 4}, 'crop_size=4'),
        ({'crop_views': 0}, 'crop_views=0'),
        ({'digits': (0, 3)}, r'digits=\(0, 3\)'),
        ({'digits': 4}, 'digits=4'),
        ({'digits': (5, 3)}, r'digits=\(5, 3\).*exceeds'),
        ({'digit_size': (30, 20)}, r'digit_size=\(30, 20\).*exceeds'),
        ({'digit_size': (4, 20)}, r'digit_size=\(4, 20\)'),
        ({'image_size': (160,)}, r'image_size=\(160,\)'),
        ({'image_size': (160, 40)}, r'digit_size=\(20, 56\).*image_size=\(160, 40\)'),
    ],
)
def test_bad_parameters_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitSceneParams(**arguments)


def test_too_many_digits_for_the_image() -> None:
    params = DigitSceneParams(image_size=(40, 40), digits=(60, 60), digit_size=(30, 40))
    with pytest.raises(ValueError, match=r'digits=\(60, 60\).*no room.*image_size=\(40, 40\)'):
        render_scene(scene_rng(0, 'train', 0), load_scans('train'), params)


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="split='test'"):
        load_scans('test')


# Folders


def test_interrupted_build_leaves_no_set_and_the_next_one_equals_another(
    small_set: Path, tmp_path: Path
) -> None:
    root = tmp_path / 'set'
    with pytest.raises(Interrupted):
        build(root, SMALL, track=stop_early)
    assert not root.exists() and (tmp_path / 'set.partial/train/000001.png').exists()
    assert build(root, SMALL)
    assert not (tmp_path / 'set.partial').exists()
    assert files(root) == files(small_set)


def test_a_scene_does_not_depend_on_the_number_of_scenes(small_set: Path, tmp_path: Path) -> None:
    build(tmp_path / 'set', DigitSceneParams(train=2, val=1, crop_size=16, crop_views=2, seed=7))
    few, many = files(tmp_path / 'set'), files(small_set)
    images = [name for name in few if name.endswith('.png')]
    assert {'train/000001.png', 'annotations/val/000000.png'} <= set(images)
    assert all(few[name] == many[name] for name in images)
    few, many = (
        json.loads(s['annotations/instances_train.json'])['annotations'] for s in (few, many)
    )
    assert few == many[: len(few)] and len(few) < len(many)


def test_another_seed_gives_other_scenes() -> None:
    scans, params = load_scans('train'), DigitSceneParams()
    keys = [(0, 'train', 0), (1, 'train', 0), (0, 'val', 0), (0, 'train', 1)]
    images = [render_scene(scene_rng(*key), scans, params).image for key in keys]
    assert len({image.tobytes() for image in images}) == len(keys)


def test_complete_set_is_reused_and_another_is_refused(small_set: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small_set.rglob('*')}
    assert not build(small_set, SMALL)
    assert not build(small_set, SMALL, overwrite=True)
    other = DigitSceneParams(train=5, val=3, crop_size=16, crop_views=2, seed=8)
    with pytest.raises(FileExistsError, match=r'seed=7, not 8.*overwrite'):
        build(small_set, other)
    assert before == {path: path.stat().st_mtime_ns for path in small_set.rglob('*')}


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        ('meta.json', 'no meta.json'),
        ('val/000001.png', 'val has 2 of 3'),
        ('annotations/instances_val.json', 'instances_val.json is missing'),
    ],
)
def test_damaged_set_is_refused(
    small_set: Path, tmp_path: Path, damage: str, message: str
) -> None:
    root = tmp_path / 'set'
    shutil.copytree(small_set, root)
    (root / damage).unlink()
    with pytest.raises(FileExistsError, match=message):
        build(root, SMALL)


def test_overwriting_replaces_a_set_but_never_other_files(small_set: Path, tmp_path: Path) -> None:
    root = tmp_path / 'set'
    root.mkdir()
    (root / 'meta.json').write_text('{')
    with pytest.raises(FileExistsError, match=r'meta\.json is damaged'):
        build(root, SMALL)
    (root / 'thesis.tex').write_text('years of work')
    with pytest.raises(FileExistsError, match=r'thesis\.tex'):
        build(root, SMALL, overwrite=True)
    (root / 'thesis.tex').rename(tmp_path / 'thesis.tex')
    assert build(root, SMALL, overwrite=True)
    assert files(root) == files(small_set)


def test_tool_makes_reuses_and_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / 'set'
    arguments = (
        '--train 1 --val 2 --image-size 48 64 --digits 1 2 --digit-size 16 24 --crop-size 16'
    )

    def run(*extra: str) -> str:
        command = [str(TOOL), '--out', str(root), *arguments.split(), *extra]
        monkeypatch.setattr('sys.argv', command)
        runpy.run_path(str(TOOL), run_name='__main__')
        return capsys.readouterr().out

    assert f'made {root}' in run()
    assert json.loads((root / 'meta.json').read_text())['image_size'] == [48, 64]
    sheet = read(root / 'contact_sheet.png')
    assert sheet.shape[1] > 1.5 * sheet.shape[0] > 0 and sheet.std() > 10, 'two panels in a row'
    assert f'reusing {root}' in run('--contact-sheet', str(tmp_path / 'sheet.png'))
    assert (tmp_path / 'sheet.png').exists()
    (tmp_path / 'mine.png').write_text('mine')
    root = tmp_path / 'other'
    with pytest.raises(SystemExit, match=r'mine\.png exists; --overwrite replaces it'):
        run('--contact-sheet', str(tmp_path / 'mine.png'))
    assert (tmp_path / 'mine.png').read_text() == 'mine'
    for extra, message in ((['--val', '3'], 'val=2, not 3'), (['--digits', '3', '2'], 'digits=')):
        with pytest.raises(SystemExit, match=message):
            run(*extra)


# Host libraries


@pytest.mark.parametrize('split', SPLITS)
def test_mmdet_loads_instances_and_stuff(small_set: Path, split: str) -> None:
    pytest.importorskip('mmdet')
    from mmdet.datasets import CocoDataset

    load = dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True)
    dataset = CocoDataset(
        data_root=str(small_set),
        ann_file=f'annotations/instances_{split}.json',
        data_prefix=dict(img=f'{split}/', seg=f'stuffthingmaps/{split}/'),
        metainfo=dict(classes=CLASSES),
        pipeline=[dict(type='mmdet.LoadImageFromFile'), load],
    )
    assert len(dataset) == getattr(SMALL, split)
    coco = COCO(str(small_set / f'annotations/instances_{split}.json'))
    for sample in dataset:
        annotations = coco.imgToAnns[sample['img_id']]
        assert list(sample['gt_bboxes_labels']) == [a['category_id'] - 1 for a in annotations]
        boxes = sample['gt_bboxes'].tensor.numpy()
        boxes[:, 2:] -= boxes[:, :2]
        assert boxes.tolist() == [a['bbox'] for a in annotations]
        for mask, label in zip(sample['gt_masks'].masks, sample['gt_bboxes_labels']):
            assert (sample['gt_seg_map'][mask == 1] == label).all()


@pytest.mark.parametrize('reduce_zero_label', [False, True])
def test_mmseg_loads_label_maps(small_set: Path, reduce_zero_label: bool) -> None:
    pytest.importorskip('mmseg')
    from mmseg.datasets import BaseSegDataset

    load = dict(type='mmseg.LoadAnnotations', reduce_zero_label=reduce_zero_label)
    dataset = BaseSegDataset(
        data_root=str(small_set),
        data_prefix=dict(img_path='train', seg_map_path='annotations/train'),
        img_suffix='.png',
        metainfo=dict(classes=CLASSES if reduce_zero_label else ('ground', *CLASSES)),
        reduce_zero_label=reduce_zero_label,
        pipeline=[dict(type='mmseg.LoadImageFromFile'), load],
    )
    assert len(dataset) == SMALL.train
    for index, sample in enumerate(dataset):
        labels = read(small_set / f'annotations/train/{index:06d}.png')
        expected = np.where(labels == 0, 255, labels.astype(int) - 1)
        found = sample['gt_seg_map']
        assert np.array_equal(found, expected if reduce_zero_label else labels)


def test_mmpretrain_loads_crops(small_set: Path) -> None:
    pytest.importorskip('mmpretrain')
    from mmpretrain.datasets import CustomDataset

    dataset = CustomDataset(data_root=str(small_set / 'classification'), data_prefix='val')
    assert len(dataset) == len(load_scans('val').ids)
    assert sorted(dataset.CLASSES) == sorted(CLASSES)
    info = dataset.get_data_info(0)
    assert Path(info['img_path']).parent.name == dataset.CLASSES[info['gt_label']]
