# SPDX-License-Identifier: Apache-2.0
"""Missing and unfitting data are named before a model is built."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config

from mmfocal.engine import check_checkpoint, check_inputs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images, two categories."""
    root = tmp_path / 'digit_scenes'
    (root / 'train' / 'sub').mkdir(parents=True)
    (root / 'train' / 'a.png').touch()
    (root / 'train' / 'sub' / 'b.png').touch()
    content = dict(
        images=[dict(id=1, file_name='a.png'), dict(id=2, file_name='sub/b.png')],
        annotations=[],
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


def test_complete_data_pass(root):
    check_inputs(detection(root))


def test_missing_root_names_key_path_and_remedy(root):
    cfg = detection(root / 'digit_scenes')
    with pytest.raises(FileNotFoundError) as error:
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
    with pytest.raises(FileNotFoundError) as error:
        check_inputs(Config(dict(default_scope=scope, val_dataloader=loader)), ['val'])
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(ann_file='val.json'), r'dataset\.ann_file: expected a file at .*val\.json'),
        (dict(data_prefix=dict(img='val')), r'data_prefix\.img: expected a folder .*val'),
    ],
)
def test_missing_parts(root, changes, message):
    with pytest.raises(FileNotFoundError, match=message):
        check_inputs(detection(root, **changes))


def test_missing_image_is_named(root):
    (root / 'train' / 'sub' / 'b.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 2 images .* first is sub/b\.png'):
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

    content = json.loads((root / 'train.json').read_text())
    names = [*CocoDataset.METAINFO['classes'], 'yeti']
    content['categories'] = [dict(id=i, name=name) for i, name in enumerate(names)]
    (root / 'train.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match="category 'yeti'"):
        check_inputs(detection(root, metainfo={}))


def test_a_chosen_subset_of_categories_is_fine_and_told(root, capsys):
    check_inputs(detection(root, metainfo=dict(classes=('one',))))
    assert "['zero']" in capsys.readouterr().out


def test_not_a_coco_file(root):
    (root / 'train.json').write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"train\.json has no 'annotations'"):
        check_inputs(detection(root))


def test_a_test_set_needs_no_annotations(root):
    content = json.loads((root / 'train.json').read_text())
    del content['annotations']
    (root / 'train.json').write_text(json.dumps(content))
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
    with pytest.raises(FileNotFoundError):
        check_inputs(cfg)
    cfg.launcher = 'none'
    monkeypatch.setenv(variable, '1')  # of a shell inside a job
    with pytest.raises(FileNotFoundError):
        check_inputs(cfg)


def test_sets_that_mmpretrain_downloads_need_no_folder(tmp_path):
    dataset = dict(type='CIFAR10', data_root=str(tmp_path / 'absent'), split='train')
    check_inputs(Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dataset))))


def test_a_split_is_a_folder_of_imagenet_only(tmp_path):
    dataset = dict(type='Flowers102', data_root=str(tmp_path), split='train')
    check_inputs(Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dataset))))


def test_segmentation_and_classification_folders(tmp_path):
    (tmp_path / 'img').mkdir()
    dataset = dict(
        type='BaseSegDataset', data_root=str(tmp_path), data_prefix=dict(img_path='img')
    )
    cfg = Config(dict(default_scope='mmseg', train_dataloader=dict(dataset=dataset)))
    with pytest.raises(FileNotFoundError, match='img_path: expected a folder that is not empty'):
        check_inputs(cfg)
    (tmp_path / 'img' / 'a.png').touch()
    check_inputs(cfg)

    dataset = dict(type='ImageNet', data_root=str(tmp_path), split='train')
    cfg = Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dataset)))
    with pytest.raises(FileNotFoundError, match=r'dataset\.split: expected a folder'):
        check_inputs(cfg)


def test_evaluator_file_and_remote_data(root):
    cfg = detection(root)
    cfg.train_evaluator = [dict(type='CocoMetric', ann_file=str(root / 'absent.json'))]
    with pytest.raises(FileNotFoundError, match=r'train_evaluator\.ann_file: .*absent\.json'):
        check_inputs(cfg)
    remote = detection('s3://bucket/coco', ann_file='a.json')
    check_inputs(remote)  # not looked up


def test_checkpoint(tmp_path):
    check_checkpoint('https://example.org/weights.pth')
    with pytest.raises(FileNotFoundError, match=r'absent\.pth does not exist'):
        check_checkpoint(str(tmp_path / 'absent.pth'))
