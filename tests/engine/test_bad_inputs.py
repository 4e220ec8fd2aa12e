# SPDX-License-Identifier: Apache-2.0
"""Bad input of every kind is rejected at the start, or reported, or read as intended."""

import copy
import gc
import json
import re
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import mmcv
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from pycocotools import mask as coco_mask

from mmfocal.engine import InputError, check_inputs, check_run
from mmfocal.engine.checks import coco, images
from mmfocal.engine.checks.coco import mask_problem

HEIGHT, WIDTH = 20, 30
POLYGON = [[2, 3, 12, 3, 12, 8, 2, 8]]
SHIPPED = Path(__file__).resolve().parents[2] / 'configs' / 'quickstart'


def picture(path: Path, mode: str = 'RGB', size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 1).save(path)


def loader(**dataset) -> dict:
    return dict(batch_size=2, num_workers=0, dataset=dataset)


# ---- detection ---------------------------------------------------------------------------------


def annotated(root: Path) -> dict:
    """Three images with two instances each; ids from 1 on."""
    for name in 'abc':
        picture(root / 'images' / f'{name}.png')
    images = [
        dict(id=i, file_name=f'{name}.png', height=HEIGHT, width=WIDTH)
        for i, name in enumerate('abc', start=1)
    ]
    entry = dict(bbox=[2, 3, 10, 5], area=50, iscrowd=0, segmentation=POLYGON)
    annotations = [
        dict(entry, id=2 * image['id'] - 2 + category, image_id=image['id'], category_id=category)
        for image in images
        for category in (1, 2)
    ]
    categories = [dict(id=1, name='ring'), dict(id=2, name='pin')]
    return dict(images=images, annotations=annotations, categories=categories)


def detection(root: Path, content: dict, **changes) -> Config:
    """Write annotations; use them for training and validation."""
    (root / 'all.json').write_text(json.dumps(content))
    dataset = dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='all.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('ring', 'pin')),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[dict(type='LoadAnnotations', with_bbox=True, with_mask=True)],
    )
    cfg = dict(
        default_scope='mmdet',
        train_dataloader=loader(**{**dataset, **changes}),
        val_dataloader=loader(**{**dataset, **changes, 'test_mode': True}),
        val_evaluator=dict(
            type='CocoMetric', ann_file=str(root / 'all.json'), metric=['bbox', 'segm']
        ),
    )
    return Config(cfg)


def first(part: str, **values) -> Callable[[dict], None]:
    """Change the first entry of a part."""
    return lambda content: content[part][0].update(values)


def every(part: str, **values) -> Callable[[dict], None]:
    return lambda content: [entry.update(values) for entry in content[part]]


def without(part: str, name: str) -> Callable[[dict], None]:
    return lambda content: content[part][0].pop(name)


def rename(content: dict, part: str, reference: str, number: str) -> None:
    """Give the first entry of a part another id."""
    old, content[part][0]['id'] = content[part][0]['id'], number
    for annotation in content['annotations']:
        if annotation[reference] == old:
            annotation[reference] = number


NOTHING = coco_mask.encode(np.zeros((HEIGHT, WIDTH), np.uint8, 'F'))
EMPTY = dict(counts=NOTHING['counts'].decode(), size=[HEIGHT, WIDTH])
RELATIVE = [[0.1, 0.1, 0.4, 0.1, 0.4, 0.4, 0.1, 0.4]]
SWAPPED = [[3, 2, 3, 12, 8, 12, 8, 2]]
BESIDE = [[20, 12, 29, 12, 29, 19, 20, 19]]
BAD_ANNOTATIONS = [
    # (what is changed, words of the error)
    ('box NaN', first('annotations', bbox=[1, 2, float('nan'), 4]), 'id=1 .* bbox=.*four finite'),
    ('box infinite', first('annotations', bbox=[1, 2, float('inf'), 4]), 'bbox=.*four finite'),
    ('box far away', first('annotations', bbox=[1, 2, 3e6, 4]), 'bbox=.*1,000,000 pixels'),
    ('box of a huge integer', first('annotations', bbox=[1, 2, 10**400, 4]), 'bbox=.*four finite'),
    ('area of a huge integer', first('annotations', area=10**400), 'expected a finite number'),
    ('box of text', first('annotations', bbox=[1, 2, 'wide', 4]), 'bbox=.*four finite'),
    ('numbers as text', first('annotations', bbox=['1', '2', '3', '4']), 'bbox=.*four finite'),
    ('box of three', first('annotations', bbox=[1, 2, 3]), 'bbox=.*four finite'),
    ('box None', first('annotations', bbox=None), 'bbox=None; expected four finite'),
    ('area NaN', first('annotations', area=float('nan')), 'area=nan; expected a finite'),
    ('area of text', first('annotations', area='50'), "area='50'; expected a finite"),
    ('no area', without('annotations', 'area'), "1 of 6 annotations .* have no 'area'"),
    ('no box', without('annotations', 'bbox'), "have no 'bbox'"),
    ('no id', without('annotations', 'id'), "have no 'id'"),
    ('no iscrowd', without('annotations', 'iscrowd'), "have no 'iscrowd', usually 0"),
    ('odd iscrowd', first('annotations', iscrowd='no'), "iscrowd='no'; expected 0 or 1"),
    ('iscrowd as text', every('annotations', iscrowd='0'), "id=1 .* iscrowd='0'; expected 0 or 1"),
    ('iscrowd a list', first('annotations', iscrowd=[0]), r'iscrowd=\[0\]; expected 0 or 1'),
    ('ignore as text', first('annotations', ignore='no'), "ignore='no'; expected 0 or 1"),
    ('all are crowds', every('annotations', iscrowd=1), 'no valid .* 6 annotations have iscrowd'),
    ('all are ignored', every('annotations', ignore=True), 'no valid .* have iscrowd=1 or ignore'),
    ('all boxes negative', every('annotations', bbox=[2, 3, -4, 5]), 'no valid annotation of 6'),
    ('all areas zero', every('annotations', area=0), 'no valid annotation of 6'),
    ('all boxes outside', every('annotations', bbox=[40, 3, 4, 5]), 'no valid annotation of 6'),
    ('relative boxes', every('annotations', bbox=[0.1, 0.1, 0.9, 0.9]), 'relative to the image'),
    ('unknown image', first('annotations', image_id=9), 'unknown image_id, .* image_id=9'),
    ('unknown category', first('annotations', category_id=9), 'unknown category_id'),
    ('image id None', first('annotations', image_id=None), 'unknown image_id'),
    ('image id a list', first('annotations', image_id=[1]), 'unknown image_id'),
    ('annotation id twice', first('annotations', id=2), '2 annotations .* have id=2'),
    ('annotation id zero', first('annotations', id=0), 'id=0 .*expected integers from 1 on'),
    ('annotation id text', first('annotations', id='a'), "id='a' .*expected integers from 1 on"),
    ('annotation id beyond floats', first('annotations', id=2**53 + 1), r'up to 2\^53 = 9007'),
    ('annotation id huge', first('annotations', id=10**400), r'id=10{10}.*up to 2\^53'),
    ('annotation id None', first('annotations', id=None), 'id=None; expected an integer or text'),
    ('image id twice', first('images', id=2), '2 images .* have id=2'),
    ('image name twice', first('images', file_name='b.png'), "file_name='b.png'; expected unique"),
    ('image ids of two types', lambda content: rename(content, 'images', 'image_id', '1'),
     "1 of 3 images .* have text as id, the first is '1', others an integer"),
    ('category ids of two types',
     lambda content: rename(content, 'categories', 'category_id', 'r'),
     "1 of 2 categories .* have text as id, the first is 'r'"),
    ('category id twice', first('categories', id=2), '2 categories .* have id=2'),
    ('category name twice', first('categories', name='pin'), "2 categories .* have name='pin'"),
    ('category name a number', first('categories', name=7), 'name=7; expected text'),
    ('image missing', first('images', file_name='d.png'), r'1 of 3 images .*d\.png'),
    ('image name None', first('images', file_name=None), 'file_name=None; expected text'),
    ('half the height', first('images', height=10), r'a\.png is 30 x 20, .* says 30 x 10'),
    ('height zero', first('images', height=0), 'height=0; expected a positive integer'),
    ('height of text', first('images', height='20'), "height='20'; expected a positive"),
    ('no width', without('images', 'width'), "1 of 3 images .* have no 'width'"),
    ('no mask', without('annotations', 'segmentation'), '1 of 6 annotations .* no segmentation'),
    ('mask None', first('annotations', segmentation=None), 'no segmentation, but masks are'),
    ('no masks at all', every('annotations', segmentation=[]), '6 of 6 .*no segmentation'),
    ('flat polygon', first('annotations', segmentation=[1, 1, 9, 1, 9, 9]), 'expected polygons'),
    ('mask of text', first('annotations', segmentation='full'), "segmentation='full'; expected"),
    ('polygon NaN', first('annotations', segmentation=[[1, 1, 9, float('nan'), 9, 9]]), 'numbers'),
    ('polygon of text', first('annotations', segmentation=[['1', '1', '9']]), 'numbers; expected'),
    ('polygon far away', first('annotations', segmentation=[[1e9, 1e9, 2e9, 1, 5, 5]]),
     'corner further than 1,000,000 pixels'),
    ('polygon far left', first('annotations', segmentation=[*POLYGON, [1, 1, -2e6, 1, 5, 5]]),
     'corner further than'),
    ('polygon beyond floats', first('annotations', segmentation=[[1, 1, 9, 1e308, 1e308, 9]]),
     'values that are not numbers'),
    ('polygon of a huge integer', first('annotations', segmentation=[[1, 1, 9, 10**400, 9, 9]]),
     'values that are not numbers'),
    ('outline without end', first('annotations', segmentation=[[0, 0, 9e5, 9e5] * 20]),
     'outline of over 10,000,000 pixels'),
    ('relative polygons', every('annotations', segmentation=RELATIVE),
     'polygons of all 6 annotations .* end at 1.5 pixels: they seem relative'),
    ('polygon empty', first('annotations', segmentation=[[]]), 'has 0 coordinates'),
    ('polygon a line', first('annotations', segmentation=[[1, 1, 9, 9]]), 'has 4 coordinates'),
    ('RLE of another size', first('annotations', segmentation=dict(counts=[9], size=[3, 3])),
     r'size=\[3, 3\], its image \[20, 30\]'),
    ('RLE of a size with fractions',
     first('annotations', segmentation=dict(counts=[600], size=[20.0, 30.0])),
     r'size=\[20.0, 30.0\], its image \[20, 30\]'),
    ('RLE too long', first('annotations', segmentation=dict(counts=[9, 999], size=[20, 30])),
     'add up to 1008 pixels; expected 20 x 30 = 600'),
    ('RLE negative', first('annotations', segmentation=dict(counts=[-1, 601], size=[20, 30])),
     'non-negative integers'),
    ('RLE broken', first('annotations', segmentation=dict(counts='oops', size=[20, 30])),
     'add up to '),
    ('RLE without counts', first('annotations', segmentation=dict(size=[20, 30])), 'expected "co'),
    ('x and y of polygons swapped', every('annotations', segmentation=SWAPPED),
     r'bbox of 6 of 6 .* \[y, x, height, width\] \(or x and y of the polygons .* id=1'),
    ('boxes of height and width', every('annotations', bbox=[3, 2, 5, 10]),
     r'seems to be \[y, x, height, width\]'),
    ('boxes of corners', every('annotations', bbox=[2, 3, 12, 8]), r'be \[x1, y1, x2, y2\], by'),
    ('boxes of swapped corners', every('annotations', bbox=[3, 2, 8, 12]), r'be \[y1, x1, y2, x2'),
    ('boxes of centers', every('annotations', bbox=[7, 5.5, 10, 5]), r'be \[x_center, y_cente'),
    ('annotations a dict', lambda content: content.update(annotations=dict(a=1)), 'not a list of'),
    ('images of text', lambda content: content.update(images=['a.png']), 'not a list of objects'),
    ('no annotations', lambda content: content.update(annotations=[]), "has no 'annotations'"),
    ('no categories', lambda content: content.pop('categories'), "has no 'categories'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ('change', 'words'),
    [pytest.param(change, words, id=name) for name, change, words in BAD_ANNOTATIONS],
)
def test_annotations_are_refused(tmp_path, change, words):
    content = annotated(tmp_path)
    check_inputs(detection(tmp_path, content))
    change(content)
    with pytest.raises(InputError, match=words) as error:
        check_inputs(detection(tmp_path, content))
    assert '.ann_file: ' in str(error.value) and 'all.json' in str(error.value)


@pytest.mark.parametrize(
    ('name', 'coding', 'words'),
    [
        ('ring', 'utf-8-sig', 'starts with a byte order mark'),
        ('ring', 'utf-16', "codec can't decode"),
        ('ring', 'utf-16-le', 'Expecting'),  # has no mark; Python would guess
        ('Ring ö', 'latin-1', "codec can't decode"),
    ],
)
def test_only_utf8_is_read_as_by_pycocotools(tmp_path, name, coding, words):
    content = annotated(tmp_path)
    first('categories', name=name)(content)
    cfg = detection(tmp_path, content, metainfo=dict(classes=(name, 'pin')))
    text = json.dumps(content, ensure_ascii=False)
    (tmp_path / 'all.json').write_text(text, encoding='utf-8')
    check_inputs(cfg)
    (tmp_path / 'all.json').write_text(text, encoding=coding)
    with pytest.raises(InputError, match=rf'all\.json is not JSON: .*{words}'):
        check_inputs(cfg)


@pytest.mark.parametrize(
    ('iscrowd', 'words'), [('0', "iscrowd='0'; expected"), (1, 'no valid annotation of 6')]
)
def test_crowds_of_data_that_are_only_trained_on_are_refused(tmp_path, iscrowd, words):
    """mmdet would ignore all instances without a word."""
    content = annotated(tmp_path)
    every('annotations', iscrowd=iscrowd)(content)
    cfg = detection(tmp_path, content)
    cfg.val_evaluator = None
    with pytest.raises(InputError, match=words):
        check_inputs(cfg, ['train'])
    first('annotations', iscrowd=False)(content)
    every('annotations', iscrowd=True)(dict(annotations=content['annotations'][1:]))
    cfg = detection(tmp_path, content)
    check_inputs(cfg, ['train'])
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(
            dict(cfg.train_dataloader.dataset, pipeline=[], serialize_data=False)
        )
    flags = [each['ignore_flag'] for entry in dataset for each in entry['instances']]
    assert flags == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (first('annotations', bbox=[2, 3, 0, 5]), 'leaves out 1 of 6 boxes'),
        (first('annotations', bbox=[-5, -5, 60, 60], iscrowd=True), ''),
        (first('annotations', segmentation=[*POLYGON, [1, 1, 5]]), ''),
        (first('annotations', segmentation=[[1, 1, 9, 1, 9, 9, 4]]), 'ignores 1 of 6 instances'),
        (
            first('annotations', segmentation=[[500, 500, 600, 500, 600, 600]]),
            r'WARNING: .*polygons of 1 of 6 .* outside of their image.* the first is id=1',
        ),
        (first('annotations', segmentation=RELATIVE), '^(?!.*relative)'),
        (first('annotations', segmentation=BESIDE), '^(?!.*overlap)'),
        (first('annotations', segmentation=SWAPPED), '^(?!.*swapped)'),
        (every('annotations', bbox=[1, 1, 20, 15]), '^(?!.*bbox)'),  # with what is hidden
        (
            every('annotations', segmentation=BESIDE),
            r'WARNING: .*polygons of 6 of 6 .* do not overlap their bbox, .* id=1;.* swapped',
        ),
        (
            every('annotations', bbox=[0, 0, 1, 1], segmentation=[*BESIDE, *RELATIVE]),
            '^(?!.*(overlap|relative))',
        ),
        (
            first('annotations', segmentation=dict(counts=[600], size=[20, 30])),
            r'WARNING: .*RLE of 1 of 6 .* has no pixel, so .* empty; the first is id=1',
        ),
        (first('annotations', segmentation=EMPTY), 'WARNING: .*RLE of 1 of 6 '),
        (
            lambda content: content.update(annotations=content['annotations'][::2]),
            r'WARNING: train_.*: 1 of 2 classes have no valid annotation in .*all.json: pin',
        ),
        (first('annotations', segmentation=[[-9, 1, 99, 1, 9, 9]]), '^(?!.*outside)'),
        (every('annotations', bbox=[15, 5, 25, 18]), r'WARNING: .*6 of 6 boxes .* end outside'),
        (lambda content: content['categories'].append(dict(id=3, name='x')), r"left out: \['x'\]"),
        (lambda content: content['images'][0].update(license=1), ''),
    ],
)
def test_annotations_that_are_read_as_mmdet_does_are_only_told(tmp_path, capsys, change, words):
    content = annotated(tmp_path)
    change(content)
    cfg = detection(tmp_path, content)
    check_inputs(cfg)
    assert re.search(words, capsys.readouterr().out)
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(
            dict(cfg.train_dataloader.dataset, pipeline=[], serialize_data=False)
        )
    assert sum(len(entry['instances']) for entry in dataset) in (3, 5, 6)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(metainfo=dict(classes=('ring'))), r"classes='ring' is text; .*\('ring',\)"),
        (dict(metainfo=dict(classes=('ring', 'pins'))), "no category 'pins'"),
        (dict(metainfo=dict(classes=('pin', 'ring'))), 'must come in the order'),
        (dict(metainfo={}), "no category 'person'"),
        (dict(filter_cfg=dict(min_size=200)), r'min_size=200 leaves none of 3 .* of 20 pixels'),
        (dict(ann_files='x'), 'unexpected keyword argument'),
        (dict(data_prefix=dict(img='pictures')), 'expected a folder with files'),
    ],
)
def test_settings_of_data_sets_are_refused(tmp_path, settings, words):
    with pytest.raises(InputError, match=words):
        check_inputs(detection(tmp_path, annotated(tmp_path), **settings))


def test_training_without_masks_needs_none(tmp_path):
    content = annotated(tmp_path)
    every('annotations', segmentation=[])(content)
    cfg = detection(tmp_path, content, pipeline=[dict(type='LoadAnnotations', with_bbox=True)])
    cfg.val_evaluator.metric = 'bbox'
    check_inputs(cfg)
    # polygons that are not loaded tell the order of boxes all the same
    for segmentation in ([[1, 'x']], SWAPPED):
        every('annotations', segmentation=segmentation)(content)
        (tmp_path / 'all.json').write_text(json.dumps(content))
        if segmentation is not SWAPPED:
            check_inputs(cfg)
            continue
        with pytest.raises(InputError, match=r'seems to be \[y, x, height, width\]'):
            check_inputs(cfg)


def another_evaluator_file(root: Path, change: Callable[[dict], None]) -> Config:
    """Validation that is scored with a file of its own."""
    cfg = detection(root, annotated(root))
    other = annotated(root)
    change(other)
    cfg.val_evaluator.ann_file = str(root / 'other.json')
    (root / 'other.json').write_text(json.dumps(other))
    return cfg


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda content: (content['images'].pop(), content.update(
            annotations=content['annotations'][:4])), r'1 of 3 images .* has id=3'),
        (first('categories', name='x'), r'the categories x, pin, but .*all.json has ring, pin'),
        (lambda content: content['categories'].pop(0), 'has the categories pin, but'),
        (lambda content: content['categories'].reverse(),
         r'other.json has the categories pin, ring, but .*all.json has another order: ring, pin'),
        (without('annotations', 'iscrowd'), r"val_evaluator\.ann_file: .*no 'iscrowd'"),
        (every('annotations', iscrowd='0'), r"val_evaluator\.ann_file: .*iscrowd='0'; expected"),
        (first('images', file_name='x.png'),
         r'1 of 3 images of .*all.json have another name or size in .*: id=1 is a.png .* x.png'),
        (first('images', file_name='aa.png'), r'have another name or size in .*aa.png'),
        (first('images', width=31), r'a.png \(30 x 20\) in the first, a.png \(31 x 20\)'),
        (lambda content: content['images'][0].update(id=2) or content['images'][1].update(id=1),
         '2 of 3 images .* have another name or size'),
    ],
)  # fmt: skip
def test_another_file_of_the_evaluator_is_compared(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        check_inputs(another_evaluator_file(tmp_path, change), ['val'])


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda content: None, '^$'),
        (first('images', file_name='images/a.png'), '^$'),
        (lambda content: content['categories'].append(dict(id=3, name='x')), '^$'),
        (lambda content: content['images'].append(dict(content['images'][0], id=4, file_name='x')),
         'WARNING: val_evaluator.*1 of 4 images .* id=4; their objects count as missed'),
        (lambda content: content['annotations'].pop(),
         r'WARNING: .*1 of 3 images have another number .* c.png \(30 x 20\): 1 instead of 2'),
    ],
)  # fmt: skip
def test_another_file_of_the_evaluator_that_fits_is_accepted(tmp_path, capsys, change, words):
    check_inputs(another_evaluator_file(tmp_path, change), ['val'])
    assert re.search(words, capsys.readouterr().out)


def test_sorted_categories_of_the_evaluator_must_be_those_of_the_data_set(tmp_path):
    content = annotated(tmp_path)
    content['categories'].reverse()
    cfg = detection(tmp_path, content, metainfo=dict(classes=('pin', 'ring')))
    check_inputs(cfg)
    cfg.val_evaluator.sort_categories = True
    with pytest.raises(InputError, match=r'ring, pin, sorted by id .* order: pin, ring'):
        check_inputs(cfg)


def test_every_file_of_concatenated_data_sets_is_compared(tmp_path):
    cfg = detection(tmp_path, annotated(tmp_path))
    other = annotated(tmp_path)
    first('images', id=9)(other)
    every('annotations', image_id=9)(other)
    (tmp_path / 'other.json').write_text(json.dumps(other))
    one = cfg.val_dataloader.dataset
    cfg.val_dataloader.dataset = dict(
        type='ConcatDataset', datasets=[one, dict(one, ann_file='other.json')]
    )
    with pytest.raises(InputError, match=r'1 of 3 images of .*other.json are not in .*all.json'):
        check_inputs(cfg, ['val'])


def other_order(root: Path, names: list[str], part: str) -> Config:
    """Another data set of the config has the same categories in another order, or others."""
    content = annotated(root)
    cfg = detection(root, content)
    content['categories'] = [
        dict(id=9 - index if name == 'x' else ['', 'ring', 'pin'].index(name), name=name)
        for index, name in enumerate(names)
    ]
    (root / 'other.json').write_text(json.dumps(content))
    one = cfg.train_dataloader.dataset
    other = dict(one, ann_file='other.json')
    if part == 'concat':
        cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[one, other])
    else:
        cfg[f'{part}_dataloader'] = loader(**other, test_mode=True)
        cfg[f'{part}_evaluator'] = dict(cfg.val_evaluator, ann_file=str(root / 'other.json'))
    return cfg


@pytest.mark.parametrize('part', ['concat', 'val', 'test'])
@pytest.mark.parametrize('classes', [('ring', 'pin'), ('pin', 'ring'), None, ('ring',)])
def test_all_data_sets_of_a_config_have_the_same_labels(tmp_path, part, classes):
    splits = ('train', 'val', 'test')
    check_inputs(other_order(tmp_path, ['ring', 'x', 'pin'], part), splits)
    cfg = other_order(tmp_path, ['pin', 'ring'], part)
    other = cfg.get(f'{part}_dataloader', cfg.train_dataloader).dataset
    other = other.datasets[1] if part == 'concat' else other
    other.metainfo = dict(classes=classes) if classes else {}
    with pytest.raises(InputError) as error:
        check_inputs(cfg, splits)
    text = str(error.value)
    if classes == ('ring',):
        assert "class 1 is None; expected 'pin'" in text
    else:
        assert 'other.json numbers classes in another way than' in text
        assert "class 0 is 'pin'; expected 'ring'. mmdet numbers them in the order of each" in text
    assert text.count('reorder the categories') == 1
    # no line makes labels differ
    assert "('pin'" not in text.replace(' ', '').replace('"', "'")
    assert ("('ring'" in text) == (classes != ('ring', 'pin'))


@pytest.mark.parametrize('length', [0, 2, 4, 5, 6, 7, 8])
def test_masks_that_pass_are_read_by_pycocotools(length):
    """pycocotools decodes every mask that passes to the size of the image."""
    rng = np.random.default_rng(length)
    polygons = [rng.uniform(0, 20, length).tolist(), POLYGON[0]]
    if mask_problem(polygons, [HEIGHT, WIDTH], scored=True) is None:
        rles = coco_mask.frPyObjects(polygons, HEIGHT, WIDTH)
        assert coco_mask.decode(coco_mask.merge(rles)).shape == (HEIGHT, WIDTH)
    else:
        assert length < 5


def test_compressed_masks_are_measured_as_pycocotools_writes_them():
    rng = np.random.default_rng(0)
    for density in (0, 0.01, 0.5, 0.99, 1):
        mask = np.asfortranarray(rng.random((HEIGHT, WIDTH)) < density, np.uint8)
        rle = coco_mask.encode(mask)
        rle['counts'] = rle['counts'].decode()
        assert mask_problem(rle, [HEIGHT, WIDTH], scored=True) is None
        rle['counts'] = rle['counts'][:-1]
        assert mask_problem(rle, [HEIGHT, WIDTH], scored=True) is not None


# ---- pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('mode', 'suffix'),
    [
        ('RGB', '.jpg'), ('CMYK', '.jpg'), ('L', '.jpg'), ('RGBA', '.png'), ('LA', '.png'),
        ('P', '.png'), ('1', '.png'), ('I;16', '.png'), ('RGB', '.webp'), ('RGB', '.bmp'),
    ],
)  # fmt: skip
def test_pictures_of_every_kind_pass_and_load(tmp_path, mode, suffix):
    content = annotated(tmp_path)
    content['images'][0]['file_name'] = f'new{suffix}'
    picture(tmp_path / 'images' / f'new{suffix}', mode)
    cfg = detection(tmp_path, content, pipeline=[dict(type='LoadImageFromFile')])
    cfg.val_evaluator.metric = 'bbox'
    check_inputs(cfg)
    with DefaultScope.overwrite_default_scope('mmdet'):
        loaded = DATASETS.build(dict(cfg.train_dataloader.dataset, serialize_data=False))[0]['img']
    assert loaded.shape == (HEIGHT, WIDTH, 3) and loaded.dtype == np.uint8


@pytest.mark.parametrize('scale', [1, 3])
@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('color', ['color', 'unchanged', 'color_ignore_orientation'])
@pytest.mark.parametrize('kind', ['jpg', 'png', 'webp', 'tif', 'mpo'])
def test_pictures_turned_by_exif_have_the_size_that_is_loaded(
    tmp_path, monkeypatch, kind, color, backend, scale
):
    """Decoders turn some formats only; a large image is not decoded."""
    monkeypatch.setattr(images, '_DECODED_PIXELS', 2000)
    content = annotated(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    name = f'turned.{kind}'
    Image.new('RGB', (scale * HEIGHT, scale * WIDTH)).save(tmp_path / 'images' / name, exif=exif)
    load = dict(type='LoadImageFromFile', color_type=color, imdecode_backend=backend)
    image = mmcv.imread(tmp_path / 'images' / name, color, backend=backend)
    for height, width in (image.shape[:2], image.shape[1::-1]):
        content['images'][0].update(file_name=name, height=height, width=width)
        cfg = detection(tmp_path, content, pipeline=[load])
        cfg.val_evaluator.metric = 'bbox'
        if (height, width) == image.shape[:2]:
            check_inputs(cfg)
            continue
        with pytest.raises(InputError, match=f'{name} is {height} x {width}, .* says {width} x '):
            check_inputs(cfg)


@pytest.mark.parametrize(
    ('share', 'appended', 'words'),
    [
        (1, b'', r'(?s)^(?!.*seem)'),
        (1, bytes(1000), r'(?s)^(?!.*seem)'),
        (0.7, b'', r'WARNING: .*1 of .* seem truncated'),
    ],
)
@pytest.mark.parametrize('task', ['detection', 'segmentation', 'classification'])
def test_a_large_picture_without_its_end_is_told(
    tmp_path, capsys, monkeypatch, task, share, appended, words
):
    """Its thumbnail has an end of its own; cameras append data."""
    monkeypatch.setattr(images, '_DECODED_PIXELS', 500)
    cfg, folder = TASKS[task](tmp_path)
    path = next(path for path in sorted(folder.rglob('*.png')))
    thumbnail = BytesIO()
    Image.new('RGB', (8, 8)).save(thumbnail, 'JPEG')
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(path, 'JPEG', quality=99, comment=thumbnail.getvalue())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)] + appended)
    check_inputs(cfg)
    assert re.search(words, capsys.readouterr().out)


@pytest.mark.parametrize('task', ['segmentation', 'classification'])
@pytest.mark.parametrize('place', ['', 'sub/deep'])
def test_links_to_a_folder_above_are_refused(tmp_path, task, place):
    """The hosts would follow many of them without end."""
    cfg, folder = TASKS[task](tmp_path)
    if task == 'classification':
        folder = folder / 'dog'
    inner = folder / place
    inner.mkdir(parents=True, exist_ok=True)
    (inner / 'elsewhere').symlink_to(tmp_path / 'val')  # no loop
    check_inputs(cfg, ['train'])
    for index in range(9):
        (inner / f'loop{index}').symlink_to(folder)
    with pytest.raises(InputError, match=r'loop\d links to a folder above it'):
        check_inputs(cfg, ['train'])


def test_folders_that_hold_nothing_but_loops_are_empty(tmp_path):
    cfg, _ = classification(tmp_path)
    for index in range(9):
        (tmp_path / 'empty' / str(index)).mkdir(parents=True)
        (tmp_path / 'empty' / str(index) / 'loop').symlink_to(tmp_path / 'empty')
    cfg.train_dataloader.dataset.data_prefix = 'empty'
    with pytest.raises(InputError, match=r'expected a folder with files at .*empty'):
        check_inputs(cfg, ['train'])


@pytest.mark.parametrize('damage', ['empty', 'truncated', 'text'])
@pytest.mark.parametrize('suffix', ['.png', '.jpg'])
@pytest.mark.parametrize('task', ['detection', 'segmentation', 'classification'])
def test_damaged_pictures_are_named(tmp_path, task, suffix, damage):
    cfg, folder = TASKS[task](tmp_path)
    path = next(path for path in sorted(folder.rglob('*.png')))
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))
    noise.save(tmp_path / f'noise{suffix}')
    whole = (tmp_path / f'noise{suffix}').read_bytes()
    texts = dict(empty=b'', truncated=whole[: len(whole) // 2], text=b'not found')
    path.write_bytes(texts[damage])
    with pytest.raises(InputError, match=f'1 of .* images cannot be read: {path}'):
        check_inputs(cfg)


@pytest.mark.parametrize('kind', ['PCX', 'TGA', 'DDS', 'SGI', 'float TIFF', 'large TGA'])
@pytest.mark.parametrize('task', ['detection', 'segmentation', 'classification'])
def test_formats_that_the_pipeline_does_not_decode_are_named(tmp_path, task, kind):
    cfg, folder = TASKS[task](tmp_path)
    path = next(path for path in sorted(folder.rglob('*.png')))
    size = (1500, 1500) if kind == 'large TGA' else (WIDTH, HEIGHT)
    image = Image.new('F' if kind == 'float TIFF' else 'RGB', size)
    image.save(path, kind.split()[-1])
    pipeline = cfg.train_dataloader.dataset.get('pipeline', [])
    cfg.train_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile'), *pipeline]
    with pytest.raises(InputError, match=f'cannot be read: {path} .*(cv2|OpenCV)'):
        check_inputs(cfg, ['train'])
    Image.new('RGB', (WIDTH, HEIGHT)).save(path, 'TGA')
    cfg.train_dataloader.dataset.pipeline[0].imdecode_backend = 'pillow'
    check_inputs(cfg, ['train'])


def whole_detection(root: Path) -> tuple[Config, Path]:
    return detection(root, annotated(root)), root / 'images'


# ---- segmentation ------------------------------------------------------------------------------


def segmentation(root: Path, **changes) -> tuple[Config, Path]:
    """Three images of two classes."""
    for name in 'abc':
        picture(root / 'images' / f'{name}.png')
        labels(root, name, [0, 1])
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(root),
        data_prefix=dict(img_path='images', seg_map_path='maps'),
        img_suffix='.png',
        metainfo=dict(classes=('ground', 'digit')),
        pipeline=[dict(type='LoadAnnotations')],
    )
    cfg = dict(default_scope='mmseg', train_dataloader=loader(**{**dataset, **changes}))
    return Config(cfg), root / 'images'


def labels(root: Path, name: str, values: list[int], height: int = HEIGHT) -> None:
    (root / 'maps').mkdir(exist_ok=True)
    rows = np.resize(np.array(values, np.uint8), (height, WIDTH))
    Image.fromarray(rows).save(root / 'maps' / f'{name}.png')


def test_a_class_that_never_occurs_while_all_else_is_ignored(tmp_path):
    cfg, _ = segmentation(tmp_path)
    for name in 'abc':
        labels(tmp_path, name, [0, 255])
    with pytest.raises(InputError) as error:
        check_inputs(cfg)
    assert "1 of 2 classes occur in none of 3 label maps: 'digit' (1)" in str(error.value)
    assert '255, which is ignored, occurs in 3' in str(error.value)


def test_a_class_that_never_occurs_among_others_is_told(tmp_path, capsys):
    classes = ('ground', 'digit', 'letter')
    check_inputs(segmentation(tmp_path, metainfo=dict(classes=classes))[0])
    told = capsys.readouterr().out
    assert 'WARNING: ' in told and "1 of 3 classes occur in none of 3 label maps: 'lett" in told


@pytest.mark.parametrize('split', ['val', 'test'])
def test_all_splits_of_segmentation_have_the_same_labels(tmp_path, split):
    cfg, _ = segmentation(tmp_path)
    cfg[f'{split}_dataloader'] = copy.deepcopy(cfg.train_dataloader)
    check_inputs(cfg, ('train', split))
    cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=('digit', 'ground'))
    words = (
        rf'{split}_dataloader.dataset.metainfo.classes differs from train_dataloader.dataset.'
        "metainfo.classes: class 0 is 'digit'; expected 'ground'"
    )
    with pytest.raises(InputError, match=words):
        check_inputs(cfg, ('train', split))


def test_label_maps_of_another_size_are_named(tmp_path):
    cfg, _ = segmentation(tmp_path)
    labels(tmp_path, 'b', [0, 1], height=HEIGHT // 2)
    with pytest.raises(InputError, match=r'maps/b\.png has 30 x 10 pixels, .*b\.png has 30 x 20'):
        check_inputs(cfg)


def test_listed_images_must_exist(tmp_path):
    cfg, _ = segmentation(tmp_path, ann_file='list.txt')
    (tmp_path / 'list.txt').write_text('a\nb\nz\n')
    with pytest.raises(InputError, match=r'img_path: 1 of 3 images are missing, .*z\.png'):
        check_inputs(cfg)
    (tmp_path / 'list.txt').write_text('a\nb\n')
    check_inputs(cfg)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (b'', 'list.txt is empty; expected lines of names of images without suffix'),
        (b'a\n\nb\n', 'has 1 blank lines, the first is line 2'),
        (b'a\nb\n\n', 'first is line 3'),
        ('ä\n'.encode('latin-1'), 'is not UTF-8'),
        (b'\xef\xbb\xbfa\n', 'byte order mark'),
    ],
)
def test_lists_of_segmentation_are_refused(tmp_path, text, words):
    cfg, _ = segmentation(tmp_path, ann_file='list.txt')
    (tmp_path / 'list.txt').write_bytes(text)
    with pytest.raises(InputError, match=rf'ann_file: .*{words}'):
        check_inputs(cfg)


@pytest.mark.parametrize('kind', ['BaseSegDataset', 'ADE20KDataset'])
def test_text_is_no_list_of_classes(tmp_path, kind):
    cfg, _ = segmentation(tmp_path, metainfo=dict(classes=('wall')), type=kind)
    with pytest.raises(InputError, match=r"classes='wall' is text; .*\('wall',\)"):
        check_inputs(cfg)
    (tmp_path / 'classes.txt').write_text('ground\ndigit\n')  # MMEngine reads names from files
    path = str(tmp_path / 'classes.txt')
    check_inputs(segmentation(tmp_path, metainfo=dict(classes=path))[0])


def test_images_of_two_suffixes_are_named(tmp_path):
    cfg, _ = segmentation(tmp_path)
    picture(tmp_path / 'images' / 'overview.jpg')  # has no label map
    check_inputs(cfg)
    labels(tmp_path, 'overview', [0, 1])
    with pytest.raises(InputError, match=r"1 images .* do not end in '\.png' \(img_suffix\)"):
        check_inputs(cfg)


# ---- classification ----------------------------------------------------------------------------


def classification(root: Path, **changes) -> tuple[Config, Path]:
    """Two splits of three classes."""
    for split in ('train', 'val'):
        for name in ('cat', 'dog', 'eel'):
            picture(root / split / name / '0.png')
    dataset = dict(type='CustomDataset', data_root=str(root), with_label=True)
    cfg = dict(
        default_scope='mmpretrain',
        model=dict(head=dict(num_classes=3)),
        data_preprocessor=dict(num_classes=3),
        train_dataloader=loader(**dataset, data_prefix='train', **changes),
        val_dataloader=loader(**dataset, data_prefix='val', **changes),
        val_evaluator=dict(type='Accuracy', topk=(1,)),
    )
    return Config(cfg), root / 'train'


TASKS = dict(
    detection=whole_detection, segmentation=segmentation, classification=classification
)  # fmt: skip


@pytest.mark.parametrize(
    ('folders', 'options', 'words'),
    [
        (['train/.ipynb_checkpoints'], {}, r'folders \.ipynb_checkpoints, which would become'),
        (['val/__MACOSX'], {}, 'val_dataloader.* folders __MACOSX, which would'),
        (['train/fox'], {}, 'model.head.num_classes=3, but train_.* has 4 classes: cat, dog'),
        (['train/fox'], {}, r'val_dataloader\.dataset has other .*: fox missing, none additional'),
        (['val/fox'], {}, 'none missing, fox additional'),
        ([], {'model.head.num_classes': 2}, 'head.num_classes=2, but train_.* has 3 classes'),
        ([], {'model.head.num_classes': 10}, r'model = dict\(head=dict\(num_classes=3\)\)'),
        ([], {'data_preprocessor.num_classes': 10}, 'data_preprocessor.num_classes=10, but'),
        ([], {'val_evaluator.topk': (1, 5)}, r'val_evaluator.topk=\(1, 5\), but there are 3 cl'),
        ([], {'val_evaluator.topk': 5}, r'val_evaluator = dict\(topk=\(1,\)\)'),
        ([], {'train_dataloader.dataset.metainfo': dict(classes=('cat', 'dog'))}, 'has 3 class f'),
        ([], {'train_dataloader.dataset.metainfo': dict(classes=('eel', 'cat', 'dog'))}, 'order'),
        (
            [],
            {'train_dataloader.dataset.metainfo': dict(classes=('eel'))},
            "classes='eel' is text",
        ),
        ([], {'train_dataloader.dataset.type': 'ImageNet'}, 'has 1000 class names'),
        (
            [],
            {'train_dataloader.batch_size': 0},
            'batch_size=0; expected an integer of at least 1',
        ),
        ([], {'train_dataloader.num_workers': '2'}, "num_workers='2'; expected an integer"),
        ([], {'val_dataloader.dataset.with_label': False}, r'with_label=False; .*\(Accuracy\)'),
        ([], {'train_dataloader.dataset.type': 'CustomDatset'}, 'did you mean CustomDataset'),
    ],
)
def test_class_folders_are_refused(tmp_path, folders, options, words):
    cfg, _ = classification(tmp_path)
    check_inputs(cfg)
    for name in folders:
        picture(tmp_path / name / '0.png')
    cfg.merge_from_dict(options)
    with pytest.raises(InputError, match=words):
        check_inputs(cfg)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'train_dataloader': 'x'}, "train_dataloader='x'; expected a dict"),
        ({'train_dataloader': dict(batch_size=2)}, 'train_dataloader.dataset=None; expected a d'),
        ({'train_dataloader.dataset.type': None}, 'dataset.type=None; expected the name of a'),
        ({'train_dataloader.dataset.data_root': 3}, 'dataset.data_root=3; expected text'),
        ({'train_dataloader.dataset.data_prefix': 3}, 'data_prefix=3; expected text or a dict'),
        (
            {'train_dataloader.dataset.data_prefix': dict(img=3)},
            'data_prefix.img=3; expected text',
        ),
        ({'train_dataloader.dataset.ann_file': 3}, 'dataset.ann_file=3; expected text'),
        ({'train_dataloader.dataset.metainfo': 'x'}, "dataset.metainfo='x'; expected a dict"),
        ({'train_dataloader.dataset.pipeline': ['Load']}, r"pipeline=\['Load'\]; expected a list"),
        ({'train_dataloader.dataset.indices': 0}, 'indices=0; expected an integer other than 0'),
        ({'train_dataloader.dataset.indices': []}, r'indices=\[\]; .* that is not empty'),
        ({'train_dataloader.dataset.indices': 'all'}, "indices='all'; expected an integer"),
        ({'train_dataloader.dataset': dict(type='ConcatDataset', datasets=[])}, r'=\[\]; .*least'),
        (
            {'train_dataloader.dataset': dict(type='RepeatDataset', times=0, dataset={})},
            'dataset.times=0; expected a positive integer',
        ),
        ({'val_evaluator': 'Accuracy'}, "val_evaluator='Accuracy'; expected a dict or a list"),
        ({'val_evaluator.topk': '1'}, "val_evaluator.topk='1'; expected a positive integer"),
        ({'val_evaluator.topk': (1, 0)}, r'topk=\(1, 0\); expected a positive integer'),
        ({'val_evaluator.topk': 0}, 'val_evaluator.topk=0; expected a positive integer'),
        ({'param_scheduler': 'x'}, "param_scheduler='x'; expected a dict or a list"),
        ({'model.backbone': 'x'}, "model.backbone='x'; expected a dict"),
        ({'randomness': dict(seed='abc')}, "randomness.seed='abc'; expected an integer from 0"),
        ({'train_cfg': dict(max_iters='20')}, "train_cfg.max_iters='20'; expected a positive int"),
        ({'train_cfg': dict(max_iters=2.5)}, 'max_iters=2.5; expected a positive integer'),
        ({'train_cfg': dict(max_epochs=-5)}, 'max_epochs=-5; expected a positive integer'),
        ({'train_cfg': dict(val_begin='abc')}, "val_begin='abc'; expected an integer of"),
        ({'custom_hooks': ['EMAHook']}, r"custom_hooks=\['EMAHook'\]; expected a list of dicts"),
        ({'optim_wrapper': dict(optimizer=dict(lr='x'))}, "lr='x'; expected a number of at least"),
        ({'optim_wrapper': dict(optimizer=dict(lr=-1))}, 'optimizer.lr=-1; expected a number of'),
        ({'optim_wrapper': dict(accumulative_counts=0)}, 'counts=0; expected a positive integer'),
        ({'train_cfg': dict(val_interval=0)}, 'val_interval=0; expected a positive integer'),
    ],
)
def test_parts_of_another_type_are_refused(tmp_path, options, words):
    cfg, _ = classification(tmp_path)
    for key, value in options.items():
        parent, _, name = key.rpartition('.')
        node = cfg
        for each in parent.split('.') if parent else ():
            node = node[each]
        node[name] = value
    with pytest.raises(InputError, match=words):
        check_run(cfg)


@pytest.mark.parametrize(
    'options',
    [
        dict(model=dict(head=dict(num_classes=3), backbone=None), custom_hooks=None),
        dict(train_cfg=dict(by_epoch=False, max_iters=20, val_interval=20 / 5), load_from=None),
        dict(randomness=dict(seed=None), param_scheduler=[], val_cfg={}, test_evaluator=()),
    ],
)
def test_parts_that_may_be_absent_or_whole_numbers_pass(tmp_path, options):
    cfg, _ = classification(tmp_path)
    cfg.update(options)
    check_inputs(cfg)


@pytest.mark.parametrize('task', ['detection', 'segmentation', 'classification'])
def test_epochs_without_a_batch_are_refused(tmp_path, task):
    cfg, _ = TASKS[task](tmp_path)
    sampler = dict(type='DefaultSampler', shuffle=True)
    cfg.train_dataloader.update(batch_size=3, drop_last=True, sampler=sampler)
    check_inputs(cfg)
    cfg.train_dataloader.batch_size = 4
    with pytest.raises(InputError, match=r'drop_last=True leaves no batch of 3 images \(batch'):
        check_inputs(cfg)
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset
    )
    check_inputs(cfg)
    cfg.train_dataloader.dataset.dataset.indices = 1
    with pytest.raises(InputError, match='no batch of 2 images'):
        check_inputs(cfg)


def test_label_maps_must_be_loaded_to_be_scored(tmp_path):
    cfg, _ = segmentation(tmp_path)
    cfg.val_dataloader = dict(
        cfg.train_dataloader, dataset=dict(cfg.train_dataloader.dataset, pipeline=[])
    )
    cfg.val_evaluator = [dict(type='IoUMetric', format_only=True)]
    check_inputs(cfg)
    cfg.val_evaluator = dict(type='IoUMetric')
    with pytest.raises(InputError, match=r'val_.*pipeline has no LoadAnnotations; .*\(IoUMetric'):
        check_inputs(cfg)


LISTED = b'cat/0.png 0\ndog/0.png 1\neel/0.png 2\n'


@pytest.mark.parametrize(
    ('text', 'options', 'words'),
    [
        (b'', {}, r'list\.txt is empty; expected lines'),
        (b'cat/0.png 7\n', {}, r"'cat/0\.png 7' .* has label 7, but model\.head\.num_classes=3"),
        (b'cat/0.png 0\ncat/fox.png 1\n', {}, r'1 of 2 images .*fox\.png'),
        (b'cat/0.png 0\ndog/0.png dog\n', {}, "line 2 .* is 'dog/0.png dog'"),
        ('cat/0.png ²\n'.encode(), {}, "line 1 .* is 'cat/0.png ²'"),
        (b'cat/0.png\n', {}, "line 1 .* is 'cat/0.png'; expected a path and a label"),
        (LISTED + b'\n', {}, 'has 1 blank lines, the first is line 4; expected lines'),
        (LISTED + b' \n\n' + LISTED, {}, 'has 2 blank lines, the first is line 4'),
        ('cät/0.png 0\n'.encode('latin-1'), {}, 'is not UTF-8: .*byte 0xe4'),
        (b'\xef\xbb\xbf' + LISTED, {}, 'starts with a byte order mark'),
        (LISTED.decode().encode('utf-16'), {}, 'is not UTF-8'),
        (LISTED + b'cat/0.png 2\n', {}, r'list\.txt lists cat/0\.png with the labels 0 and 2'),
        (LISTED, {'val_evaluator.topk': (1, 5)}, r'topk=\(1, 5\), but there are 3 classes'),
        (LISTED, {'data_preprocessor.num_classes': 10}, '=10, but model.head.num_classes=3'),
        (LISTED, {'model.data_preprocessor': dict(num_classes=9)},
         r'model\.data_preprocessor\.num_classes=9, but model\.head\.num_classes=3'),
        (LISTED, {'train_dataloader.dataset.metainfo': dict(classes=('cat', 'dog'))},
         'has label 2, but train_.*metainfo has 2 classes'),
        (LISTED, {'train_dataloader.dataset.with_label': False}, r'3 of 3 images .*0\.png 0'),
        (b'cat/0.png 0\n', {'val_evaluator': [dict(type='Accuracy', topk=4)]}, r'0\.topk=\(4,\)'),
    ],
)  # fmt: skip
def test_lists_of_images_are_refused(tmp_path, text, options, words):
    cfg, _ = classification(tmp_path)
    path = tmp_path / 'list.txt'
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.ann_file = 'list.txt'
    path.write_bytes(LISTED)
    check_inputs(cfg)
    path.write_bytes(LISTED.replace(b'\n', b'\r\n'))
    check_inputs(cfg)
    path.write_bytes(text)
    cfg.merge_from_dict(options)
    with pytest.raises(InputError, match=words):
        check_inputs(cfg)


@pytest.mark.parametrize('head', [None, dict(type='MoCoV3Head')])
def test_lists_without_a_classifying_head_are_accepted(tmp_path, head):
    cfg, _ = classification(tmp_path)
    cfg.model.head = head
    (tmp_path / 'list.txt').write_bytes(LISTED)
    cfg.train_dataloader.dataset.ann_file = 'list.txt'
    check_inputs(cfg, ['train'])


@pytest.mark.parametrize(
    ('kind', 'options', 'words'),
    [
        ('CIFAR100', {}, r'model\.head\.num_classes=10, but train_.* has 100 classes'),
        ('mmpretrain.CIFAR100', {}, 'but train_dataloader.dataset.metainfo has 100 classes'),
        ('CUB', {}, 'has 200 classes'),
        ('CIFAR10', {'data_preprocessor': dict(num_classes=3)}, '=3, but .* has 10 classes'),
        ('CIFAR10', {'train_evaluator': dict(type='Accuracy', topk=(1, 20))}, 'are 10 classes'),
        ('CIFAR10', {'train_dataloader.dataset.metainfo': dict(classes=('a', 'b'))}, 'has 2 clas'),
    ],
)
def test_the_head_must_fit_data_sets_with_their_own_classes(tmp_path, kind, options, words):
    pytest.importorskip('mmpretrain')
    dataset = loader(type='CIFAR10', data_root=str(tmp_path / 'absent'), split='train')
    model = dict(head=dict(num_classes=10))
    cfg = Config(dict(default_scope='mmpretrain', model=model, train_dataloader=dataset))
    check_inputs(cfg, ['train'])
    cfg.merge_from_dict({'train_dataloader.dataset.type': kind, **options})
    with pytest.raises(InputError, match=words):
        check_inputs(cfg, ['train'])


@pytest.mark.parametrize('classes', [3, 60])
def test_pictures_of_all_class_folders_are_sampled(tmp_path, classes):
    """Also those that are not the first of their folder."""
    names = [f'{index:02}' for index in range(classes)]
    for name in names:
        for index in range(4):
            picture(tmp_path / 'train' / name / f'{index}.png')
    cfg, _ = classification(tmp_path / 'other')
    cfg.merge_from_dict({'model.head.num_classes': classes, 'data_preprocessor': None})
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    check_inputs(cfg, ['train'])
    for name in names:
        (tmp_path / 'train' / name / '1.png').write_bytes(b'')
    with pytest.raises(InputError, match=r'of a sample of \d\d images cannot be read: .*1\.png'):
        check_inputs(cfg, ['train'])


def test_an_empty_class_folder_is_told(tmp_path, capsys):
    """mmpretrain skips hidden files, such as those of macOS."""
    cfg, _ = classification(tmp_path)
    (tmp_path / 'val/cat/._0.png').write_bytes(b'no image')
    (tmp_path / 'val/dog/0.png').rename(tmp_path / 'val/dog/.0.png')
    check_inputs(cfg)
    assert re.search('WARNING: val_dataloader.*1 of 3 .* no image .*dog', capsys.readouterr().out)


def test_images_of_other_suffixes_are_told(tmp_path, capsys):
    cfg, folder = classification(tmp_path)
    for name in ('dog/1.webp', 'eel/1.TIFF'):
        picture(folder / name)
    check_inputs(cfg)
    words = r'WARNING: train_.*: 2 images in .* left out, .* of the data set \(.bmp .*1\.webp'
    assert re.search(words, capsys.readouterr().out)
    cfg.train_dataloader.dataset.extensions = ('.png', '.webp', '.tiff')
    check_inputs(cfg)
    assert 'left out' not in capsys.readouterr().out


@pytest.mark.parametrize('listed', [False, True])
def test_a_single_class_is_told(tmp_path, capsys, listed):
    cfg, folder = classification(tmp_path)
    for name in ('cat', 'dog'):
        shutil.rmtree(folder / name)
    if listed:
        (tmp_path / 'list.txt').write_bytes(b'eel/0.png 2\neel/0.png 2\n')
        cfg.train_dataloader.dataset.ann_file = 'list.txt'
    else:
        cfg.model.head.num_classes = cfg.data_preprocessor.num_classes = 1
    check_inputs(cfg, ['train'])
    words = 'all 2 lines of .* have label 2' if listed else 'has a single class folder, eel'
    assert re.search(f'WARNING: train_dataloader.*{words}', capsys.readouterr().out)


def test_pictures_without_class_folders_are_refused(tmp_path):
    cfg, _ = classification(tmp_path)
    picture(tmp_path / 'flat' / '0.png')
    cfg.train_dataloader.dataset.data_prefix = 'flat'
    with pytest.raises(InputError, match=r'expected a folder of images per class in .*flat'):
        check_inputs(cfg)


# ---- last batches ------------------------------------------------------------------------------


def three_maps(root: Path) -> Config:
    cfg, _ = segmentation(root)
    cfg.model = Config.fromfile(SHIPPED / 'focal_nano_upernet.py').model
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.num_classes = 2
    return cfg


def three_classes(root: Path) -> Config:
    cfg, _ = classification(root)
    cfg.model = Config.fromfile(SHIPPED / 'focal_nano_cls.py').model
    width = cfg.model.head.in_channels
    cfg.model.head = dict(
        type='StackedLinearClsHead', num_classes=3, in_channels=width, mid_channels=[8],
        norm_cfg=dict(type='BN1d'),
    )  # fmt: skip
    return cfg


def three_listed(root: Path) -> Config:
    cfg = three_classes(root)
    (root / 'list.txt').write_bytes(LISTED)
    cfg.train_dataloader.dataset.ann_file = 'list.txt'
    return cfg


@pytest.mark.parametrize('prepare', [three_maps, three_classes, three_listed])
def test_a_last_batch_of_one_image_is_refused_where_batch_norm_cannot_run(
    tmp_path, monkeypatch, prepare
):
    cfg = prepare(tmp_path)
    given = cfg.train_dataloader
    given.sampler = dict(type='DefaultSampler')
    words = r'leaves a last batch of 1 of 3 images \(batch_size=2, 1 process\): batch norm in'
    with pytest.raises(InputError, match=words) as error:
        check_inputs(cfg, ['train'])
    assert 'train_dataloader = dict(drop_last=True)' in str(error.value)
    if prepare is three_listed:
        return
    one = given.dataset
    for changes in (
        dict(drop_last=True),
        dict(batch_size=3),
        dict(sampler=dict(type='InfiniteSampler')),
        dict(dataset=dict(type='RepeatDataset', times=2, dataset=one)),
        dict(dataset=dict(type='ConcatDataset', datasets=[one, one])),
    ):
        cfg.train_dataloader = {**given, **changes}
        check_inputs(cfg, ['train'])
    cfg.train_dataloader = given
    cfg.launcher = 'pytorch'
    monkeypatch.setenv('WORLD_SIZE', '2')
    check_inputs(cfg, ['train'])
    monkeypatch.setenv('WORLD_SIZE', '3')
    with pytest.raises(InputError, match='3 processes'):
        check_inputs(cfg, ['train'])


# ---- all together ------------------------------------------------------------------------------


@pytest.mark.parametrize('test_file', ['all.json', 'test.json'])
def test_own_data_are_told_in_one_go_with_the_lines_to_write(tmp_path, capsys, test_file):
    """The lines that the error ends with are all that is needed, for the test set too."""
    content = annotated(tmp_path)
    content['categories'].append(dict(id=3, name="a 'big' coin"))
    for name in ('all.json', test_file):
        (tmp_path / name).write_text(json.dumps(content))
        first('annotations', bbox=[2, 3, 0, 5])(content)
    places = dict(data_root=str(tmp_path), ann_file='all.json', data_prefix=dict(img='images/'))
    scored = dict(ann_file=str(tmp_path / 'all.json'))
    settings = dict(
        _base_=str(SHIPPED / 'focal_nano_maskrcnn.py'),
        **{f'{split}_dataloader': dict(dataset=places) for split in ('train', 'val', 'test')},
        **{f'{split}_evaluator': scored for split in ('val', 'test')},
    )
    settings['test_dataloader']['dataset'] = dict(places, ann_file=test_file)
    settings['test_evaluator'] = dict(ann_file=str(tmp_path / test_file))
    path = tmp_path / 'own.py'
    text = '\n'.join(f'{name} = {value!r}' for name, value in settings.items())
    path.write_text(text)
    with pytest.raises(InputError) as error:
        check_inputs(Config.fromfile(path))
    assert 'test_dataloader' not in capsys.readouterr().out
    assert 'test_dataloader' not in str(error.value).split('Lines to write')[0]
    message, lines = str(error.value).split('Lines to write in a config that has this one as _bas')
    for key in ('train_dataloader.dataset', 'val_dataloader.dataset', 'model.roi_head.mask_head'):
        assert key in message
    lines = lines.split(':\n', 1)[1].replace('\n  ', '\n').strip()
    path.with_name('mended.py').write_text(f'_base_ = {str(path)!r}\n{lines}')
    cfg = Config.fromfile(path.with_name('mended.py'))
    check_inputs(cfg, ('train', 'val', 'test'))
    assert cfg.model.roi_head.bbox_head.num_classes == 3


# ---- large files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'key, value, expected',
    [
        ('area', 50, None),
        ('area', float('nan'), 'area=nan'),  # msgspec rejects NaN
        ('segmentation', [[1, 2, 3, 4, 5, 'x']], 'values that are not numbers'),
        ('segmentation', dict(counts=[9, 999], size=[HEIGHT, WIDTH]), 'add up to 1008'),
        ('segmentation', None, 'have no segmentation'),
        ('image_id', [1], r'unknown image_id'),
    ],
)
def test_files_are_read_alike_with_and_without_msgspec(
    tmp_path, monkeypatch, key, value, expected
):
    """The collector runs again afterwards."""
    pytest.importorskip('msgspec')
    content = annotated(tmp_path)
    content['annotations'][0][key] = value
    told = []
    for reader in (coco.msgspec, None):
        with monkeypatch.context() as patch:
            patch.setattr(coco, 'msgspec', reader)
            try:
                check_inputs(detection(tmp_path, content))
                told.append('')
            except InputError as error:
                told.append(str(error))
        assert gc.isenabled()
    assert told[0] == told[1] and bool(told[0]) == (expected is not None)
    assert (expected or '') in told[0]


@pytest.mark.parametrize('scored', [False, True])
def test_many_masks_are_sampled_unless_they_are_scored(tmp_path, monkeypatch, scored):
    monkeypatch.setattr(coco, 'MASK_SAMPLE', 2)
    content = annotated(tmp_path)
    # the second of six annotations is not in the sample
    content['annotations'][1]['segmentation'] = [[1, 2, 3, 4, 5, 'x']]
    cfg = detection(tmp_path, content)
    if scored:
        with pytest.raises(InputError, match=r'annotation id=2 .*values that are not numbers'):
            check_inputs(cfg, ['val'])
        return
    cfg.val_evaluator = None
    check_inputs(cfg, ['train'])
    rle = dict(counts=[9, 999], size=[HEIGHT, WIDTH])  # pycocotools would write out of bounds
    content['annotations'][2] |= dict(segmentation=rle, iscrowd=1)
    with pytest.raises(InputError, match=r'annotation id=3 .*counts add up to 1008 pixels'):
        check_inputs(detection(tmp_path, content), ['train'])
