# SPDX-License-Identifier: Apache-2.0
"""Configs for one's own data: what they contain, and that they pass the checks of training."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from mmfocal.own_data import FORMATS, plan, to_coco
from tests.helpers.config_suite import build_meta, load

CLASSES = ('cat', 'dog')


@pytest.fixture(scope='module')
def new_config(repo_root: Path):
    """The tool as a module."""
    from mmfocal.cli import _load

    return _load('new-config')


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures for each split, with a box of each class, as four kinds of annotations."""
    monkeypatch.chdir(tmp_path)
    categories = [dict(id=index + 3, name=name) for index, name in enumerate(CLASSES)]
    for split in ('train', 'val'):
        images, annotations = [], []
        for folder in ('pictures', 'maps', 'yolo'):
            (tmp_path / folder / split).mkdir(parents=True)
        for name in CLASSES:
            (tmp_path / 'folders' / split / name).mkdir(parents=True)
            cv2.imwrite(f'folders/{split}/{name}/a.jpg', np.zeros((32, 32, 3), np.uint8))
        for number in range(2):
            images.append(dict(id=number, file_name=f'{number}.jpg', height=40, width=80))
            cv2.imwrite(f'pictures/{split}/{number}.jpg', np.zeros((40, 80, 3), np.uint8))
            labels = np.zeros((40, 80), np.uint8)
            lines = []
            for index in range(2):
                x, y, w, h = 8 + 40 * index, 10, 20, 16
                labels[y : y + h, x : x + w] = index + 1
                box = [x, y, w, h]
                lines.append(f'{index} {(x + w / 2) / 80} {(y + h / 2) / 40} {w / 80} {h / 40}')
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=number,
                        category_id=index + 3,
                        bbox=box,
                        area=w * h,
                        iscrowd=0,
                        segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                    )
                )
            cv2.imwrite(f'maps/{split}/{number}.png', labels)
            Path(f'yolo/{split}/{number}.txt').write_text('\n'.join(lines))
        content = dict(images=images, annotations=annotations, categories=categories)
        Path(f'{split}.json').write_text(json.dumps(content))
    Path('data.yaml').write_text(f'names: {list(CLASSES)}\nnc: 2\n')
    return tmp_path


COCO = '--train train.json --val val.json --images pictures/train --val-images pictures/val'
MAPS = (
    '--train maps/train --val maps/val --images pictures/train --val-images pictures/val '
    '--classes ground cat dog'
)
FOLDERS = '--train folders/train --val folders/val'


@pytest.mark.parametrize(
    ('base', 'options', 'count', 'length'),
    [
        ('detection/focal_t_cascade_3x', COCO, 2, 25),
        ('detection/focal_s_retinanet_1x.py', COCO, 2, 21),
        ('segmentation/focal_t_upernet_160k', MAPS, 3, 39),  # also replaces its pipelines
        ('classification/focal_t_in1k', FOLDERS, 2, 24),
        ('quickstart/focal_nano_cls', FOLDERS, 2, 24),  # keeps its evaluator
    ],
)
def test_writes_what_differs(new_config, data, base, options, count, length):
    arguments = [*options.split(), '--batch-size', '4', '--gpus', '2', '--epochs', '24']
    new_config.main(['--base', base, *arguments, '--out', 'my.py'])  # runs the checks
    cfg, old = Config.fromfile('my.py'), load(base.removesuffix('.py'))
    text = cfg.pretty_text
    assert 'num_classes=1000' not in text and 'num_classes=80' not in text
    head = cfg.model.get('bbox_head') or cfg.model.get('head') or cfg.model.get('decode_head')
    head = head or cfg.model.roi_head.bbox_head
    for part in head if isinstance(head, list) else [head]:
        assert part.num_classes == count
    build_meta(cfg)
    rate = old.optim_wrapper.optimizer.lr * 8 / old.auto_scale_lr.base_batch_size
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(rate, rel=0.01)
    assert cfg.auto_scale_lr.base_batch_size == 8
    assert cfg.test_dataloader.dataset == cfg.val_dataloader.dataset
    assert cfg.default_hooks.checkpoint.save_best
    lines = [line for line in Path('my.py').read_text().splitlines() if line.strip()]
    assert max(map(len, lines)) < 100 and len(lines) <= length


def test_writes_nothing_that_equals_the_base(new_config, data):
    base, batch = 'quickstart/focal_nano_maskrcnn', '--batch-size 4'  # the base's
    new_config.main(['--base', base, *COCO.split(), *batch.split(), '--out', 'my.py'])
    text = Path('my.py').read_text()
    for same in ('batch_size', 'train_cfg', 'param_scheduler', 'optim_wrapper', 'interval'):
        assert same not in text
    assert text.count('classes=classes') == 1 and len(text.split('\n')) <= 20
    cfg, old = Config.fromfile('my.py'), load(base)
    for same in ('train_cfg', 'param_scheduler', 'optim_wrapper', 'auto_scale_lr'):
        assert cfg[same] == old[same]
    assert cfg.train_dataloader.batch_size == 4
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        assert loader.dataset.metainfo == dict(classes=CLASSES)


def test_missing_weights_are_reported(new_config, data, monkeypatch, capsys):
    monkeypatch.setenv('FOCAL_T_CKPT', 'swin:weights.pth')
    arguments = ['--base', 'detection/focal_t_retinanet_1x', *COCO.split(), '--out', 'my.py']
    new_config.main(arguments)
    assert 'starts from swin:weights.pth, which does not exist' in capsys.readouterr().out
    arguments[-1] = 'other.py'
    with pytest.raises(SystemExit, match=r'error: --weights weights\.pth: no such file'):
        new_config.main([*arguments, '--weights', 'weights.pth'])
    Path('weights.pth').touch()
    new_config.main([*arguments, '--weights', 'swin:weights.pth'])
    start = Config.fromfile('other.py').model.backbone.init_cfg
    assert start == dict(type='FocalPretrained', checkpoint='swin:weights.pth')
    with pytest.raises(SystemExit, match='are for a FocalTransformer, not for SwinTransformer'):
        swin = ['--base', 'quickstart/swin_nano_maskrcnn', *COCO.split(), '--out', 'swin.py']
        new_config.main([*swin, '--weights', 'weights.pth'])
    for there in ('weights.pth', 'swin:weights.pth'):
        assert not new_config.is_absent(there)
    assert new_config.is_absent('absent.pth')
    for address in ('https://example.org/swin.pth', 'hf-hub:owner/name'):
        assert not new_config.is_absent(address) and not new_config.is_absent(f'swin:{address}')


def test_schedules_in_proportion():
    cfg = load('detection/focal_t_maskrcnn_1x')
    changes = plan(cfg, images=100, batch=2, epochs=24)
    assert changes['train_cfg'] == dict(max_epochs=24)
    warmup, steps = changes['param_scheduler']
    assert warmup['end'] == 120  # a tenth of 24 x 50 iterations, less than the base's 500
    assert (steps['milestones'], steps['end']) == ([16, 22], 24)
    assert changes['optim_wrapper'] == dict(optimizer=dict(lr=1.25e-5))

    cfg = load('segmentation/focal_t_upernet_160k')
    changes = plan(cfg, images=64, batch=2, gpus=2, epochs=100)
    assert changes['train_cfg'] == dict(max_iters=1600, val_interval=160)
    assert [part['end'] for part in changes['param_scheduler']] == [15, 1600]
    assert changes['default_hooks']['checkpoint']['interval'] == 160

    cfg = load('classification/focal_t_in1k')
    warmup, cosine = plan(cfg, images=64, batch=32, epochs=30)['param_scheduler']
    assert (warmup['end'], cosine['T_max']) == (2, 30)
    assert cosine['eta_min'] == pytest.approx(1e-5 / 32, rel=0.01)


def _write_voc(path: Path, names: tuple[str, ...]) -> None:
    objects = ''.join(
        f'<object><name>{name}</name><bndbox><xmin>9</xmin><ymin>11</ymin><xmax>28</xmax>'
        '<ymax>26</ymax></bndbox></object>'
        for name in names
    )
    size = '<size><width>80</width><height>40</height><depth>3</depth></size>'
    path.with_suffix('.xml').write_text(f'<annotation>{size}{objects}</annotation>')


def _write_labelme(path: Path, names: tuple[str, ...]) -> None:
    shapes = [
        dict(label=name, points=[[8, 10], [28, 26]], shape_type='rectangle') for name in names
    ]
    content = dict(imagePath=f'{path.name}.jpg', imageHeight=40, imageWidth=80, shapes=shapes)
    path.with_suffix('.json').write_text(json.dumps(content))


def _write_yolo(path: Path, names: tuple[str, ...]) -> None:
    known = ('cat', 'dog', 'ant')
    Path('data.yaml').write_text(f'names: {list(known)}\nnc: 3\n')
    lines = [f'{known.index(name)} 0.225 0.45 0.25 0.4' for name in names]
    path.with_suffix('.txt').write_text('\n'.join(lines))


@pytest.mark.parametrize(
    ('form', 'write', 'options', 'classes'),
    [
        ('voc', _write_voc, '', 'ant cat dog'),
        ('labelme', _write_labelme, '', 'ant cat dog'),
        ('yolo', _write_yolo, '--names data.yaml', 'cat dog ant'),
        ('voc', _write_voc, '--classes dog ant cat', 'dog ant cat'),
        ('labelme', _write_labelme, '--classes cat dog ant bee', 'cat dog ant bee'),
    ],
)
def test_splits_share_their_classes(new_config, data, form, write, options, classes, capsys):
    """Classes appear in another order in each split, and one is missing from validation."""
    for split, names in dict(train=('dog', 'ant', 'cat'), val=('cat', 'dog')).items():
        Path(form, split).mkdir(parents=True, exist_ok=True)
        write(Path(form, split, '0'), names)
        write(Path(form, split, '1'), names[::-1])
    folders = COCO.replace('train.json', f'{form}/train').replace('val.json', f'{form}/val')
    arguments = [*folders.split(), '--format', form, *options.split(), '--out', 'my.py', '--base']
    with pytest.raises(SystemExit, match='stuff maps'):
        new_config.main([*arguments, 'detection/focal_t_htcpp_3x'])
    assert not list(data.glob('my*'))  # a failure leaves nothing
    new_config.main([*arguments, 'detection/focal_t_retinanet_1x'])
    cfg = Config.fromfile('my.py')
    assert cfg.metainfo['classes'] == tuple(classes.split())
    assert cfg.train_dataloader.dataset.ann_file == 'my_train.json'
    for split, expected in dict(train=('dog', 'ant', 'cat'), val=('cat', 'dog')).items():
        content = json.loads(Path(f'my_{split}.json').read_text())
        names = {category['id']: category['name'] for category in content['categories']}
        assert list(names.values()) == classes.split()
        found = [names[a['category_id']] for a in content['annotations']]
        assert found == [*expected, *expected[::-1]]
        for annotation in content['annotations']:
            assert annotation['bbox'] == pytest.approx([8, 10, 20, 16], abs=0.1)
    if form == 'voc':  # boxes alone; the base loads masks, although its model needs none
        nano = ['quickstart/focal_nano_retinanet', '--overwrite', '--classes', *classes.split()]
        new_config.main([*arguments, *nano])
        steps = Config.fromfile('my.py').train_dataloader.dataset.pipeline
        assert any(step.get('with_bbox') for step in steps)
        assert not any(step.get('with_mask') for step in steps)
    with pytest.raises(SystemExit, match=r"'ant' is annotated, but --classes names only"):
        new_config.main(
            [
                *arguments,
                'detection/focal_t_retinanet_1x',
                '--overwrite',
                '--classes',
                'cat',
                'dog',
            ]
        )
    assert Config.fromfile('my.py').metainfo['classes'] == tuple(classes.split())  # kept


YOLO = (
    '--base quickstart/focal_nano_retinanet --format yolo --names data.yaml --out my.py '
    + COCO.replace('train.json', 'yolo/train').replace('val.json', 'yolo/val')
).split()


@pytest.mark.parametrize(
    ('names', 'line', 'words'),
    [
        (
            'names: [cat, dog]',
            '7 .5 .5 .2 .2',
            r'0\.txt, line 2: class 7; expected one of .*: 0, 1',
        ),
        ('names: [cat, dog]', '-1 .5 .5 .2 .2', r'line 2: class -1; expected one of the indices'),
        ('names: {0: cat, 5: dog}', '1 .5 .5 .2 .2', r'class 1; expected one of .*: 0, 5'),
        ('names: [cat', '', r'^error: data\.yaml is not YAML: [^\n]*$'),
        ('names: cat', '', r"data\.yaml: names='cat'; expected a list of classes"),
        ('nc: 2', '', 'names=None; expected a list'),
        ('names: {a: cat}', '', "names has the key 'a'; expected an index"),
    ],
)
def test_labels_of_yolo_have_names(new_config, data, names, line, words):
    Path('data.yaml').write_text(names)
    for split in ('train', 'val'):
        Path(f'yolo/{split}/0.txt').write_text(f'0 .5 .5 .2 .2\n{line}')
        Path(f'yolo/{split}/1.txt').unlink()
    with pytest.raises(SystemExit, match=words):
        new_config.main(YOLO)
    assert not list(data.glob('my*'))


def test_indices_of_yolo_may_have_gaps(new_config, data):
    Path('data.yaml').write_text('names: {5: dog, 2: cat}')
    for split in ('train', 'val'):
        Path(f'yolo/{split}/0.txt').write_text('5 .5 .5 .2 .2\n2 .5 .5 .2 .2\n')
        Path(f'yolo/{split}/1.txt').unlink()
        Path(f'yolo/{split}/classes.txt').write_text('cat\ndog\n')  # as labelImg writes
    new_config.main(YOLO)
    assert Config.fromfile('my.py').metainfo['classes'] == ('cat', 'dog')
    content = json.loads(Path('my_train.json').read_text())
    assert [each['category_id'] for each in content['annotations']] == [2, 1]


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ('--epochs 0', "--epochs: '0'; expected a positive integer"),
        ('--epochs -3', "--epochs: '-3'; expected a positive integer"),
        ('--batch-size 0', "--batch-size: '0'; expected"),
        ('--gpus 1.5', "--gpus: '1.5'; expected"),
        ('--weights data.yaml', '--weights data.yaml: expected a checkpoint'),
        ('--weights .', '--weights .: no such file'),
    ],
)
def test_options_of_another_kind_are_refused(new_config, data, capsys, options, words):
    arguments = ['--base', 'quickstart/focal_nano_cls', *FOLDERS.split(), *options.split()]
    with pytest.raises(SystemExit) as error:
        new_config.main([*arguments, '--out', 'my.py'])
    assert words in f'{error.value}{capsys.readouterr().err}' and not Path('my.py').exists()


def test_classes_order_coco_too(new_config, data):
    arguments = ['--base', 'detection/focal_t_retinanet_1x', *COCO.split(), '--out']
    new_config.main([*arguments, 'my.py', '--classes', 'dog', 'cat'])
    cfg = Config.fromfile('my.py')
    assert cfg.metainfo['classes'] == ('dog', 'cat')
    content = json.loads(Path(cfg.val_evaluator.ann_file).read_text())
    assert [category['name'] for category in content['categories']] == ['dog', 'cat']
    assert [a['category_id'] for a in content['annotations']] == [2, 1, 2, 1]
    Path('val.json').rename('other_train.json')  # would be replaced
    arguments[arguments.index('val.json')] = 'other_train.json'
    with pytest.raises(SystemExit, match=r'other_train\.json is the input'):
        new_config.main([*arguments, 'other.py', '--classes', 'dog', 'cat', '--overwrite'])


def test_hidden_folders_are_no_classes(new_config, data):
    for split in ('train', 'val'):
        for folder in ('.ipynb_checkpoints', 'cat/.ipynb_checkpoints'):
            Path('folders', split, folder).mkdir()
            image = np.zeros((32, 32, 3), np.uint8)
            cv2.imwrite(f'folders/{split}/{folder}/a-checkpoint.jpg', image)
    base = ['--base', 'quickstart/focal_nano_cls']
    new_config.main([*base, *FOLDERS.split(), '--out', 'my.py'])
    cfg = Config.fromfile('my.py')
    assert cfg.metainfo['classes'] == CLASSES
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        loaded = DATASETS.build({**cfg.train_dataloader.dataset, 'pipeline': []})
    images = [(item['img_path'], item['gt_label']) for item in loaded]
    assert images == [('folders/train/cat/a.jpg', 0), ('folders/train/dog/a.jpg', 1)]
    Path('folders/val/dog/a.jpg').unlink()
    Path('folders/val/dog').rmdir()
    with pytest.raises(SystemExit, match=r"folders/val holds .*\['cat'\]; expected .* an empty"):
        new_config.main([*base, *FOLDERS.split(), '--out', 'other.py'])
    assert not list(data.glob('other*'))


def test_labelme_becomes_coco(data):
    shapes = [
        dict(label='cat', points=[[28, 26], [8, 10]], shape_type='rectangle'),
        dict(label='ant', points=[[0, 0], [40, 0], [0, 20]], shape_type='polygon'),
    ]
    content = dict(imagePath='..\\\\0.jpg', imageHeight=40, imageWidth=80, shapes=shapes)
    Path('labelme').mkdir()
    Path('labelme/0.json').write_text(json.dumps(content))
    found = to_coco('labelme', 'labelme', 'pictures/train')
    assert found['images'][0]['file_name'] == '0.jpg'
    assert [c['name'] for c in found['categories']] == ['ant', 'cat']
    box, triangle = found['annotations']
    assert (box['bbox'], box['area'], box['category_id']) == ([8, 10, 20, 16], 320, 2)
    assert (triangle['bbox'], triangle['area']) == ([0, 0, 40, 20], 400)
    shapes[0]['shape_type'] = 'circle'
    Path('labelme/0.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"0\.json: shape_type='circle'"):
        to_coco('labelme', 'labelme', 'pictures/train')


def test_cvat_becomes_coco(data):
    pytest.importorskip('datumaro', reason="pip install 'mmfocal[labels]'")
    Path('cvat.xml').write_text(
        '<annotations><version>1.1</version><meta><task><id>1</id><size>1</size>'
        '<mode>annotation</mode><labels><label><name>cat</name></label></labels></task></meta>'
        '<image id="0" name="0.jpg" width="80" height="40"><polygon label="cat" occluded="0" '
        'points="8,10;28,10;28,26;8,26"></polygon></image></annotations>'
    )
    found = to_coco('cvat', 'cvat.xml', 'pictures/train')
    assert found['annotations'][0]['bbox'] == pytest.approx([8, 10, 20, 16])


def test_existing_files_are_kept(new_config, data):
    base = ['--base', 'detection/focal_t_retinanet_1x', '--out', 'my.py']
    yolo = COCO.replace('train.json', 'yolo/train').replace('val.json', 'yolo/val')
    yolo = [*base, *yolo.split(), '--format', 'yolo', '--names', 'data.yaml']
    files = ('my.py', 'my_train.json', 'my_val.json')
    for name in files:
        Path(name).write_text('mine')
        with pytest.raises(SystemExit, match=f'error: {name} exists; --overwrite replaces it'):
            new_config.main(yolo)
        if name != 'my.py':
            new_config.main([*yolo, '--overwrite'])
        for each in files:
            Path(each).unlink(missing_ok=True)
    for name in files:
        Path(name).write_text('mine')
    Path('yolo/val/0.txt').write_text('0 1 2')  # cannot be read
    with pytest.raises(SystemExit, match='error'):
        new_config.main([*yolo, '--overwrite'])
    content = json.loads(Path('val.json').read_text())
    content['annotations'][0]['bbox'] = [0, 0, 0]  # fails the checks, after the config is written
    Path('val.json').write_text(json.dumps(content))
    with pytest.raises(SystemExit, match='bbox'):
        new_config.main([*base, *COCO.split(), '--overwrite'])
    assert all(Path(name).read_text() == 'mine' for name in files)
    Path('base.py').write_text("_base_ = 'mmfocal::detection/focal_t_retinanet_1x.py'")
    with pytest.raises(SystemExit, match=r'base\.py is the input .*base\.py; choose another'):
        new_config.main(['--base', 'base.py', *COCO.split(), '--out', 'base.py', '--overwrite'])


def test_bad_input_is_named(new_config, data):
    arguments = [*COCO.split(), '--out', 'my.py', '--base']
    with pytest.raises(SystemExit, match='error: config absent does not exist'):
        new_config.main([*arguments, 'absent'])
    with pytest.raises(SystemExit, match=r'error: .*wrapped by RepeatDataset'):
        new_config.main([*arguments, 'detection/focal_l_dyhead_2x'])
    with pytest.raises(SystemExit, match='stuff maps'):
        new_config.main([*arguments, 'detection/focal_t_htcpp_3x'])
    content = json.loads(Path('train.json').read_text())
    del content['annotations'][0]['segmentation']
    Path('train.json').write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r'train\.json has instances without segmentation'):
        new_config.main([*arguments, 'detection/focal_t_maskrcnn_1x'])
    content['categories'].reverse()
    Path('train.json').write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r'categories of train\.json and val\.json differ'):
        new_config.main([*arguments, 'detection/focal_t_retinanet_1x'])
    cv2.imwrite('maps/val/0.png', np.full((40, 80), 7, np.uint8))
    with pytest.raises(SystemExit, match='7'):
        new_config.main(
            ['--base', 'segmentation/focal_t_upernet_160k', *MAPS.split(), '--out', 'my.py']
        )
    for option, absent in {'--train': 'folders/train', '--val': 'folders/val'}.items():
        options = FOLDERS.replace(absent, 'absent').split()
        with pytest.raises(SystemExit, match=f'error: {option} absent: no such folder'):
            new_config.main(['--base', 'quickstart/focal_nano_cls', *options, '--out', 'my.py'])
    assert not Path('my.py').exists()  # nothing that fails the checks is left
    with pytest.raises(ValueError, match='format'):
        to_coco('xml', 'maps', 'pictures')
    assert 'cvat' in FORMATS
