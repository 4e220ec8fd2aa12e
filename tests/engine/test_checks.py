# SPDX-License-Identifier: Apache-2.0
"""Missing and unsuitable data are named before a model is built."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmfocal.engine import InputError, check_checkpoint, check_inputs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images, two categories, an instance of each in the first image."""
    root = tmp_path / 'digit_scenes'
    (root / 'train' / 'sub').mkdir(parents=True)
    for name in ('a.png', 'sub/b.png'):
        Image.new('RGB', (30, 20)).save(root / 'train' / name)
    size = dict(height=20, width=30)
    instance = dict(image_id=1, bbox=[2, 3, 10, 5], area=50, iscrowd=0)
    content = dict(
        images=[dict(id=1, file_name='a.png', **size), dict(id=2, file_name='sub/b.png', **size)],
        annotations=[
            dict(id=7, category_id=1, **instance),
            dict(id=8, category_id=2, **instance),
        ],
        categories=[dict(id=1, name='zero'), dict(id=2, name='one')],
    )
    (root / 'train.json').write_text(json.dumps(content))
    return root


def detection(root: Path, **changes) -> Config:
    dataset = dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=('zero', 'one')),
    )
    loader = dict(dataset=dict(type='RepeatDataset', times=2, dataset={**dataset, **changes}))
    return Config(dict(default_scope='mmdet', train_dataloader=loader))


def save_labels(path: Path, labels: list[list[int]]) -> None:
    Image.fromarray(np.array(labels, np.uint8)).save(path)


def change(root: Path, edit: Callable[[dict], object]) -> None:
    """Edit the annotation file."""
    content = json.loads((root / 'train.json').read_text())
    edit(content)
    (root / 'train.json').write_text(json.dumps(content))


def test_complete_data_pass(root):
    check_inputs(detection(root))


def test_missing_root_names_key_path_and_remedy(root):
    cfg = detection(root / 'digit_scenes')
    with pytest.raises(InputError) as error:
        check_inputs(cfg)
    message = str(error.value)
    assert message.startswith('train_dataloader.dataset.dataset.data_root: ')
    assert str(root / 'digit_scenes') in message and 'tools/data/make_digit_scenes.py' in message
    assert '--cfg-options train_dataloader.dataset.dataset.data_root=' in message


@pytest.mark.parametrize(
    ('scope', 'kind', 'words'),
    [
        ('mmdet', 'CocoDataset', ['instances_{train2017,val2017}.json', 'cocodataset.org']),
        ('mmseg', 'ADE20KDataset', ['ADEChallengeData2016/annotations/{training,validation}']),
        ('mmpretrain', 'ImageNet', ['imagenet/{train,val}/<class>']),
        ('mmdet', 'my.OwnDataset', ['documentation of OwnDataset']),
    ],
)
def test_public_sets_are_told_with_their_layout(tmp_path, scope, kind, words):
    loader = dict(dataset=dict(type=kind, data_root=str(tmp_path / 'absent')))
    with pytest.raises(InputError) as error:
        check_inputs(Config(dict(default_scope=scope, val_dataloader=loader)), ['val'])
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(ann_file='val.json'), r'dataset\.ann_file: expected a file at .*val\.json'),
        (dict(data_prefix=dict(img='val')), r'data_prefix\.img: expected a folder .*val'),
        (dict(data_prefix=dict(img='empty')), r'data_prefix\.img: expected a folder with files'),
    ],
)
def test_missing_parts(root, changes, message):
    (root / 'empty' / 'emptier').mkdir(parents=True)
    with pytest.raises(InputError, match=message):
        check_inputs(detection(root, **changes))


def test_missing_image_is_named(root):
    (root / 'train' / 'sub' / 'b.png').unlink()
    with pytest.raises(InputError, match=r'1 of 2 images .* first is .*sub/b\.png'):
        check_inputs(detection(root))


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (('zero', 'One'), "no category 'One'"),
        (('one', 'zero'), r"order of .*\['zero', 'one'\]"),
        (None, "no category 'person'"),  # COCO's own names
    ],
)
def test_unfitting_classes_are_refused(root, classes, message):
    metainfo = dict(classes=classes) if classes else {}
    with pytest.raises(ValueError, match=message):
        check_inputs(detection(root, metainfo=metainfo))


def test_a_category_that_would_be_dropped_silently_is_refused(root):
    from mmdet.datasets import CocoDataset

    names = [*CocoDataset.METAINFO['classes'], 'yeti']
    categories = [dict(id=i, name=name) for i, name in enumerate(names)]
    change(root, lambda content: content.update(categories=categories))
    with pytest.raises(ValueError, match="category 'yeti'"):
        check_inputs(detection(root, metainfo={}))


def test_a_chosen_subset_of_categories_is_fine_and_told(root, capsys):
    check_inputs(detection(root, metainfo=dict(classes=('one',))))
    assert "['zero']" in capsys.readouterr().out


@pytest.mark.parametrize('part', ['images', 'categories', 'annotations'])
@pytest.mark.parametrize('value', [None, []])
def test_not_a_coco_file(root, part, value):
    change(root, lambda content: content.update({part: value}))
    with pytest.raises(ValueError, match=rf"train\.json has no '{part}'"):
        check_inputs(detection(root))


@pytest.mark.parametrize(
    ('text', 'message'), [('{"images": [', r'train\.json is not JSON'), ('[]', 'is a list')]
)
def test_not_a_json_file(root, text, message):
    (root / 'train.json').write_text(text)
    with pytest.raises(ValueError, match=rf'ann_file: .*{message}'):
        check_inputs(detection(root))


@pytest.mark.parametrize(
    ('part', 'name'), [('images', 'width'), ('categories', 'name'), ('annotations', 'area')]
)
def test_incomplete_entries_are_named(root, part, name):
    change(root, lambda content: content[part][1].pop(name))
    with pytest.raises(
        ValueError, match=rf"1 of 2 {part} .*train\.json have no '{name}', .*{part}\[1\]"
    ):
        check_inputs(detection(root))


@pytest.mark.parametrize(('name', 'part'), [('category_id', 'categories'), ('image_id', 'images')])
def test_annotations_of_unknown_categories_and_images_are_refused(root, name, part):
    change(root, lambda content: content['annotations'][1].update({name: 99}))
    with pytest.raises(ValueError) as error:
        check_inputs(detection(root))
    assert str(error.value) == (
        f'train_dataloader.dataset.dataset.ann_file: 1 of 2 annotations in {root}/train.json have '
        f'an unknown {name}, the first is id=8 with {name}=99; expected the id of one of its 2 '
        f'{part}'
    )


@pytest.mark.parametrize('box', [None, [1, 2, 3], [1, 2, float('nan'), 4], [1, 2, 'wide', 4]])
def test_boxes_that_are_none_are_refused(root, box):
    change(root, lambda content: content['annotations'][0].update(bbox=box))
    with pytest.raises(ValueError, match=r'annotation id=7 in .*train\.json has bbox='):
        check_inputs(detection(root))


def test_boxes_that_mmdet_leaves_out_are_counted(root, capsys):
    from mmdet.datasets import CocoDataset

    boxes = [
        *([2, 3, 10, 5], [-5, -5, 40, 40], [29, 19, 9, 9], [0, 0, 1, 1]),  # good
        *([2, 3, 0, 5], [2, 3, -4, 5], [2, 3, 0.5, 5], [30, 3, 4, 4], [3, -9, 4, 9]),
    ]
    entry = dict(image_id=1, category_id=1, area=50, iscrowd=0)
    annotations = [dict(entry, id=i, bbox=box) for i, box in enumerate(boxes)]
    annotations.append(dict(entry, id=len(boxes), bbox=boxes[0], area=0))
    change(root, lambda content: content.update(annotations=annotations))
    cfg = detection(root)
    check_inputs(cfg)
    printed = capsys.readouterr().out
    dataset = cfg.train_dataloader.dataset.dataset
    dataset.pop('type')
    kept = sum(len(entry['instances']) for entry in CocoDataset(**dataset))
    assert kept == 4 and f'leaves out {len(annotations) - kept} of 10 boxes' in printed


def test_stuff_maps_are_looked_for_and_into(root):
    maps = root / 'stuff' / 'sub'
    maps.mkdir(parents=True)
    cfg = detection(root, data_prefix=dict(img='train/', seg='stuff/'))
    cfg.model = dict(roi_head=dict(semantic_head=dict(num_classes=183)))
    key = r'train_dataloader\.dataset\.dataset\.data_prefix\.seg: '
    with pytest.raises(InputError, match=key + 'expected a folder with files'):
        check_inputs(cfg)
    save_labels(maps / 'b.png', [[0, 182, 255] * 10] * 20)
    with pytest.raises(InputError, match=key + r'1 of 2 label maps .* first is .*a\.png'):
        check_inputs(cfg)
    save_labels(root / 'stuff' / 'a.png', [[7, 7, 7] * 10] * 20)
    check_inputs(cfg)
    save_labels(maps / 'b.png', [[0, 183, 255] * 10] * 20)
    with pytest.raises(ValueError, match=key + r'.*b\.png has label 183; .*num_classes=183'):
        check_inputs(cfg)
    palette = Image.new('P', (30, 20))
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.save(maps / 'b.png')  # OpenCV makes colors of it
    with pytest.raises(InputError, match=key + r'.*b\.png has 3 channels; expected one label'):
        check_inputs(cfg)


def test_a_test_set_needs_no_annotations(root):
    change(root, lambda content: content.pop('annotations'))
    cfg = detection(root)
    cfg.test_dataloader = cfg.val_dataloader = cfg.train_dataloader
    check_inputs(cfg, ['test'])
    for split in ('train', 'val'):
        with pytest.raises(ValueError, match=r"train\.json has no 'annotations'"):
            check_inputs(cfg, [split])


def test_relatives_of_coco_keep_their_own_kinds_of_files(root):
    content = dict(images=[dict(id=1, coco_url='a.png')], annotations=[], categories=[])
    (root / 'train.json').write_text(json.dumps(content))
    check_inputs(detection(root, type='LVISV1Dataset'))


@pytest.mark.parametrize(
    ('launcher', 'variable'),
    [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID'), ('mpi', 'OMPI_COMM_WORLD_RANK')],
)
def test_only_the_first_process_looks(tmp_path, monkeypatch, launcher, variable):
    cfg = detection(tmp_path / 'absent')
    cfg.launcher = launcher
    monkeypatch.setenv(variable, '1')
    check_inputs(cfg)
    monkeypatch.setenv(variable, '0')
    with pytest.raises(InputError):
        check_inputs(cfg)
    cfg.launcher = 'none'
    monkeypatch.setenv(variable, '1')  # of a shell inside a job
    with pytest.raises(InputError):
        check_inputs(cfg)


def test_sets_that_mmpretrain_downloads_need_no_folder(tmp_path):
    dataset = dict(type='CIFAR10', data_root=str(tmp_path / 'absent'), split='train')
    check_inputs(Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dataset))))


def test_a_split_is_a_folder_of_imagenet_only(tmp_path):
    (tmp_path / 'setid.mat').touch()
    dataset = dict(type='Flowers102', data_root=str(tmp_path), split='train')
    check_inputs(Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dataset))))


def test_segmentation_and_classification_folders(tmp_path):
    (tmp_path / 'img').mkdir()
    (tmp_path / 'readme.txt').touch()
    dataset = dict(
        type='BaseSegDataset', data_root=str(tmp_path), data_prefix=dict(img_path='img')
    )
    cfg = Config(dict(default_scope='mmseg', train_dataloader=dict(dataset=dataset)))
    with pytest.raises(InputError, match='img_path: expected a folder with files'):
        check_inputs(cfg)
    (tmp_path / 'img' / 'a.png').touch()
    check_inputs(cfg)

    dataset = dict(type='ImageNet', data_root=str(tmp_path), split='train')
    cfg = Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dataset)))
    with pytest.raises(InputError, match=r'dataset\.split: expected a folder'):
        check_inputs(cfg)


def test_evaluator_file_and_remote_data(root):
    cfg = detection(root)
    cfg.train_evaluator = [dict(type='CocoMetric', ann_file=str(root / 'absent.json'))]
    with pytest.raises(InputError, match=r'train_evaluator\.0\.ann_file: .*absent\.json'):
        check_inputs(cfg)
    remote = detection('s3://bucket/coco', ann_file='a.json')
    check_inputs(remote)  # not looked up


def test_checkpoint(tmp_path):
    check_checkpoint('https://example.org/weights.pth')
    with pytest.raises(FileNotFoundError, match=r'absent\.pth does not exist'):
        check_checkpoint(str(tmp_path / 'absent.pth'))
