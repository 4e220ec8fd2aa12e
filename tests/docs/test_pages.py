# SPDX-License-Identifier: Apache-2.0
"""Commands of the pages work: they are read from the pages and run, shortened and on less data."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.models import SwinTransformer
from mmengine import load
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from sklearn.metrics import confusion_matrix
from sybil import Document, Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from mmfocal.datasets.digit_scenes import DigitSceneParams, build
from mmfocal.inference import Predictor
from mmfocal.models.pretrained import convert_to_upstream, read_checkpoint
from tests.helpers import config_suite
from tests.helpers.pictures import (
    has_box,
    has_curves,
    is_drawn_on,
    is_picture,
    read,
    shows_matrix,
)

SHORTER = {
    'make_digit_scenes.py': '--train 16 --val 4',
    'mmfocal train': '--cfg-options train_cfg.max_iters={} train_cfg.val_interval=2 '
    'default_hooks.checkpoint.interval=1 default_hooks.logger.interval=1',
}


class Shell:
    """Runs shell blocks in the current folder; trainings do a few steps, resumed ones two more."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.shorter = dict(SHORTER)
        self.printed: list[str] = []
        self.namespace: dict[str, object] = {}  # of the page's Python

    def __call__(self, example: Example) -> None:
        for command in example.parsed.replace('\\\n', ' ').splitlines():
            for beginning, options in self.shorter.items():
                if beginning in command:
                    command += ' ' + options.format(4 if '--resume' in command else 2)
            done = subprocess.run(
                ['bash', '-euo', 'pipefail', '-c', command],
                env=self.environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            assert done.returncode == 0, f'{command}\n{done.stdout[-3000:]}'
            self.printed.append(done.stdout)


@pytest.fixture(scope='session')
def digit_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of the pages' first command, which reuses them."""
    root = tmp_path_factory.mktemp('scenes') / 'digit_scenes'
    build(root, DigitSceneParams(train=16, val=4))
    return root


@pytest.fixture
def shell(
    tmp_path: Path, repo_root: Path, digit_scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> Shell:
    """A shell in a folder that looks like the checkout, with ``mmfocal`` and ``python``."""
    monkeypatch.chdir(tmp_path)
    for name in ('tools', 'configs'):
        (tmp_path / name).symlink_to(repo_root / name)
    (tmp_path / 'data').mkdir()
    shutil.copytree(digit_scenes, tmp_path / 'data/digit_scenes')
    commands = tmp_path / 'bin'
    commands.mkdir()
    for name, arguments in dict(python='', mmfocal='-m mmfocal.cli ').items():
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments}"$@"\n')
        (commands / name).chmod(0o755)
    path = f'{commands}{os.pathsep}{os.environ["PATH"]}'
    return Shell(
        {**os.environ, 'PATH': path, 'PYTHONPATH': str(repo_root), 'OMP_NUM_THREADS': '1'}
    )


def follow(page: Path, shell: Shell) -> str:
    """Run every block of a page in order; return what the commands printed."""
    parsers = [CodeBlockParser('shell', shell), CodeBlockParser('python', PythonEvaluator())]
    document: Document = Sybil(parsers, path=str(page.parent)).parse(page)
    examples = list(document.examples())
    assert len(examples) == page.read_text().count('\n```shell') + page.read_text().count(
        '\n```python'
    )
    for example in examples:
        example.evaluate()
    shell.namespace = document.namespace
    return '\n'.join(shell.printed)


def drawn_on(drawings: Iterable[Path], folder: str | Path) -> bool:
    """Return whether each drawing shows something on the image of the same name."""
    pairs = [(path, next(Path(folder).rglob(f'{path.name[:6]}*'))) for path in drawings]
    return bool(pairs) and all(is_drawn_on(read(path), read(image)) for path, image in pairs)


@pytest.fixture
def swin(shell: Shell) -> Callable[[], bool]:
    """The pages' file of Swin-T; whether ``my_focal_t.py`` starts from it."""
    file, name = 'swin_tiny_patch4_window7_224.pth', 'blocks.0.attn.{}qkv.weight'
    weights = SwinTransformer().state_dict()
    torch.save(dict(state_dict=weights), file)

    def is_start() -> bool:
        settings = Config.fromfile('my_focal_t.py').model.backbone
        assert settings.init_cfg.checkpoint == f'swin:{file}'
        backbone = MODELS.build(settings)
        backbone.init_weights()
        parameter = backbone.layers[2].get_parameter(name.format(''))
        return torch.equal(parameter, weights[f'stages.2.{name.format("w_msa.")}'])

    return is_start


@pytest.mark.slow
def test_detection(shell, repo_root, monkeypatch, swin):
    # after a few steps no box may be good enough to be evaluated
    shell.shorter['mmfocal test'] = '--cfg-options model.test_cfg.rcnn.score_thr=0'
    shell.shorter['mmfocal train'] += (
        ' model.test_cfg.rcnn.score_thr=0 model.test_cfg.rcnn.max_per_img=3'
    )
    shell.shorter['mmfocal predict'] = '--score-thr 0'
    monkeypatch.setitem(Predictor.__init__.__kwdefaults__, 'score_thr', 0.0)
    printed = follow(repo_root / 'docs/own_data_detection.md', shell)
    assert "type='FocalTransformer'" in printed
    assert 'it passes the checks before training' in printed
    assert re.search(r'\| zero +\|', printed) and '| three ' not in printed  # AP of each class
    cfg = Config.fromfile('my_detector.py')
    assert cfg.model.roi_head.mask_head.num_classes == 3
    assert swin()
    assert Path('work_dirs/my_detector/iter_4.pth').exists()  # resumed after 2
    assert len(list(Path('looked_at').rglob('*.png'))) == 8
    scenes = Path('data/three_digits/val')
    ranked = list(Path('best_and_worst').glob('*/*.png'))  # of good and bad
    assert len(ranked) == 4
    for path in ranked:
        drawing, scene = read(path), read(scenes / f'{path.name[:6]}.png')
        differs = cv2.absdiff(drawing, scene).max(2) > 40  # fails for other sizes
        assert 0.002 < differs.mean() < 0.98, path
    matrix = shell.namespace['confusion'].matrix
    assert shows_matrix('confusion.png', matrix, 'Blues', low=0)
    truth = json.loads((scenes.parent / 'val.json').read_text())['annotations']
    boxes = [annotation['category_id'] for annotation in truth]
    assert matrix[:3].sum(1).tolist() == [boxes.count(index) for index in sorted(set(boxes))]
    assert has_curves('work_dirs/my_detector/curves.png', 1)
    for path in Path('found/preds').glob('*.json'):
        drawing, scene = read(f'found/vis/{path.stem}.png'), read(scenes / f'{path.stem}.png')
        for box in json.loads(path.read_text())['bboxes']:
            assert has_box(drawing, scene, box), path
    assert (read('found.png') == read('found/vis/000000.png')).all()
    found = [json.loads(path.read_text()) for path in Path('found/preds').glob('*.json')]
    assert len(found) == 4 and any(result['bboxes'] for result in found)
    assert all(set(result['classes']) <= {'zero', 'one', 'two'} for result in found)


@pytest.mark.slow
def test_segmentation(shell, repo_root, swin):
    printed = follow(repo_root / 'docs/own_data_segmentation.md', shell)
    assert "type='FocalTransformer'" in printed
    assert 'it passes the checks before training' in printed
    assert re.search(r'\| +ground +\|', printed) and ' three ' not in printed  # IoU of each class
    assert Path('work_dirs/my_segmentor/iter_4.pth').exists()
    assert 'work_dirs/focal_nano_cls/iter_2.pth: loaded ' in printed
    assert swin()
    truth, found = (
        np.concatenate([read(path)[..., 0].ravel() for path in sorted(Path(folder).glob('*.png'))])
        for folder in ('data/three_labels/labels/val', 'label_maps')
    )
    matrix = confusion_matrix(truth, found, labels=range(4), normalize='true')
    assert shows_matrix('confusion.png', matrix, 'viridis', matrix.min())
    drawings = list(Path('found/vis').glob('*.png'))
    assert len(drawings) == 4 and drawn_on(drawings, 'data/three_labels/images/val')
    assert (read('found.png') == read('found/vis/000000.png')).all()
    assert len(list(Path('label_maps').glob('*.png'))) == 4
    labels = cv2.imread('found/preds/000000.png', cv2.IMREAD_UNCHANGED)
    result = json.loads(Path('found/preds/000000.json').read_text())
    assert labels.shape == (160, 160) and np.unique(labels).tolist() == result['labels']
    assert set(result['classes']) <= {'ground', 'zero', 'one', 'two'}


@pytest.mark.slow
def test_classification(shell, repo_root, swin):
    printed = follow(repo_root / 'docs/own_data_classification.md', shell)
    assert "type='FocalTransformer'" in printed
    assert 'it passes the checks before training' in printed and 'accuracy/top1' in printed
    assert swin()
    assert Path('work_dirs/my_classifier/iter_4.pth').exists()
    scores = load('found.pkl')
    matrix = confusion_matrix(
        *([int(s[key]) for s in scores] for key in ('gt_label', 'pred_label'))
    )
    assert shows_matrix('confusion.png', matrix, 'viridis', matrix.min())
    looked_at = list(Path('looked_at').rglob('*.*'))
    ranked = list(Path('best_and_worst').rglob('*.png'))
    assert len(looked_at) >= 8 and ranked
    assert all(map(is_picture, [*looked_at, *ranked]))
    assert drawn_on(list(Path('found/vis').iterdir()), 'data/three_folders/val/one')
    results = sorted(Path('found/preds').glob('*.json'))
    assert len(results) == len(list(Path('data/three_folders/val/one').iterdir()))
    assert json.loads(results[0].read_text())['class_name'] in ('zero', 'one', 'two')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'metric'),
    [('maskrcnn', 'coco/bbox_mAP'), ('upernet', 'mIoU'), ('cls', 'accuracy/top1')],
)
def test_recipes(shell, repo_root, name, metric):
    page = (repo_root / 'docs/recipes.md').read_text()
    assert f'`{metric}`' in page or f"'{metric}'" in page
    blocks = re.findall(r'```python\n(.+?)```', page, re.S)
    (classifiers,) = re.findall(r'^`(test_evaluator = \[.+\])`', page, re.M)
    by_class = dict(upernet='', cls=classifiers)  # mmseg prints classes by default
    base = f"_base_ = __import__('mmfocal').config('quickstart/focal_nano_{name}')"
    for index, block in enumerate(blocks):  # the base of each block is the previous block
        if 'classwise' in block:
            block = by_class.get(name, block)
        file = 'recipes.py' if index == len(blocks) - 1 else f'recipe_{index}.py'
        Path(file).write_text(f'{base}\n{block.replace("coco/bbox_mAP", metric)}')
        base = f"_base_ = '{file}'"
    if name == 'upernet':  # BN after pooling to one pixel needs two images
        shell.shorter['mmfocal train'] += ' train_dataloader.batch_size=2'
    commands = 'mmfocal train recipes.py\nmmfocal test recipes.py work_dirs/recipes/iter_2.pth\n'
    follow(_page(f'\n```shell\n{commands}```\n'), shell)
    checkpoint = read_checkpoint('work_dirs/recipes/iter_2.pth')
    assert checkpoint['ema_state_dict']['steps'] == 2
    hooks = '\n'.join(log.read_text() for log in Path('work_dirs/recipes').rglob('*.log'))
    assert 'EarlyStoppingHook' in hooks
    (settings, *_) = [line for line in hooks.splitlines() if 'from the stem to the heads' in line]
    rates = [float(rate) for rate in settings.rpartition(': ')[2].split(', ')]
    assert rates[-1] == pytest.approx(rates[-2] / 0.9, rel=0.01)
    assert len(rates) == 8 - 1  # the stem and the two blocks of the first stage are frozen
    assert list(Path('work_dirs/recipes').rglob('events.out.tfevents*'))
    cfg = Config.fromfile('recipes.py')
    assert cfg.model.backbone.with_cp and cfg.optim_wrapper.accumulative_counts == 4
    if name != 'maskrcnn':  # its boxes may be too bad to be evaluated
        assert metric in hooks and 'Skip early stopping' not in hooks
    if name == 'cls':
        assert 'single-label/precision_classwise' in shell.printed[1]


@pytest.mark.slow
def test_commands_of_the_recipes(shell, repo_root):
    page = (repo_root / 'docs/recipes.md').read_text()
    blocks = ''.join(re.findall(r'```shell\n(.+?)```', page, re.S))
    assert 'CONFIG 8 ' in blocks and blocks.count('CONFIG') == 3
    blocks = blocks.replace('CONFIG 8 ', 'CONFIG 2 ')  # two processes here
    blocks = blocks.replace('CONFIG', 'configs/quickstart/focal_nano_cls.py')
    shell.shorter['dist_train.sh'] = SHORTER['mmfocal train'] + ' --overwrite'
    follow(_page(f'\n```shell\n{blocks}```\n'), shell)
    assert Path('work_dirs/focal_nano_cls/iter_2.pth').exists()
    *amp, distributed = shell.printed
    assert len(amp) == 2 and all('fp32' in printed for printed in amp)
    assert '--auto-scale-lr is given: 0.002 instead of 0.001' in distributed


@pytest.mark.slow
def test_completion_and_swin_weights(shell, repo_root):
    page = (repo_root / 'docs/environment.md').read_text()
    (block,) = re.findall(r'```shell\n(.+?)\n```', page, re.S)
    command = block.partition('  #')[0]
    assert command != block
    page = (repo_root / 'docs/nano_results.md').read_text()
    (loop,) = re.findall(r'\nfor seed in 0 1 2; do\n(.+?)done\n', page, re.S)
    (curves,) = re.findall(r'^python tools/analysis/report_run.py .+', page, re.M)
    for large, small in {'iter_240': 'iter_2', '$seed': '0', '{0,1,2}': '0'}.items():
        assert large in loop + curves
        loop, curves = loop.replace(large, small), curves.replace(large, small)
    shell.shorter['tools/train.py'] = SHORTER['mmfocal train']
    blocks = f'{command}; complete -p mmfocal\n{loop}{curves}\n'
    printed = follow(_page(f'\n```shell\n{blocks}```\n'), shell)
    assert '_shtab_mmfocal mmfocal' in printed
    assert 'swin:work_dirs/swin_cls_0/iter_2.pth: loaded' in printed
    assert has_curves('curves/curves.png', 2)


@pytest.fixture
def run(shell: Shell) -> Path:
    """Files that the pages below name: a config, its run before any training, and a scene."""
    Path('my_detector.py').write_text(
        "_base_ = __import__('mmfocal').config('quickstart/focal_nano_maskrcnn')\n"
        'model = dict(test_cfg=dict(rcnn=dict(max_per_img=3)))\n'  # leaves the scene visible
    )
    folder = Path('work_dirs/my_detector')
    folder.mkdir(parents=True)
    cfg = Config.fromfile('my_detector.py')
    cfg.dump(folder / 'my_detector.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = config_suite.build(cfg)
        model.init_weights()
    with torch.no_grad():  # certain enough to be drawn
        model.roi_head.bbox_head.fc_cls.bias[3] = 4.0
    classes = tuple(f'class {index}' for index in range(10))
    content = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes)))
    torch.save(content, folder / 'iter_1.pth')
    shutil.copy('data/digit_scenes/val/000000.png', 'scene.png')
    return folder


@pytest.mark.slow
def test_predict(shell, repo_root, run):
    shell.shorter['mmfocal predict'] = '--score-thr 0.05'
    shutil.copy(run / 'iter_1.pth', 'my_detector.pth')
    shutil.copytree('data/digit_scenes/val', 'scans')
    follow(repo_root / 'docs/predict.md', shell)
    names = {path.name for path in Path('predictions/vis').iterdir()}
    assert names == {'scene.png', *(path.name for path in Path('scans').glob('*.png'))}
    assert drawn_on(list(Path('predictions/vis').glob('0*')), 'scans')
    assert is_drawn_on(read('predictions/vis/scene.png'), read('scene.png'))
    assert is_drawn_on(read('found.png'), read('scene.png'))
    Path('found.png').unlink()
    shutil.copytree(run, 'work_dirs/quickstart/focal_nano_maskrcnn_seed0')
    scenes = Path('data/digit_scenes/val')
    scene = shutil.copy(scenes / '000003.png', scenes / '000004.png')
    shutil.copy(scenes.parent / 'annotations/instances_train.json', 'a.json')
    shutil.copy(scenes.parent / 'annotations/instances_val.json', 'b.json')
    Path('DIR').symlink_to(scenes.parent / 'train')
    readme = (repo_root / 'README.md').read_text()
    parts = [readme.partition('\n## ')[0]] + [
        re.search(rf'\n## {title}\n.+?(?=\n## )', readme, re.S)[0]
        for title in ('Predict', 'Use the backbone', 'Your own data')
    ]
    shell.shorter['mmfocal train'] = '--help'  # Focal-T on 800 pixels
    follow(_page('\n'.join(parts)), shell)
    drawings = list(Path('predicted/vis').glob('*.png'))
    assert len(drawings) == 5 and drawn_on(drawings, scenes)
    assert is_drawn_on(read('found.png'), read(scene))
    assert Config.fromfile('my.py').model.roi_head.bbox_head.num_classes == 10


@pytest.mark.slow
def test_checkpoints(shell, repo_root, run):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        classifier = config_suite.build(config_suite.load('classification/focal_t_in1k'))
        classifier.init_weights()
    released = convert_to_upstream(classifier.state_dict(), 'focal_t_in1k')
    torch.save(dict(model=released), 'focal-tiny-is224-ws7.pth')
    for path in ('work_dirs/focal_t_maskrcnn_3x/epoch_36.pth', 'work_dirs/run/epoch_12.pth'):
        Path(path).parent.mkdir()
        shutil.copy(run / 'iter_1.pth', path)
    shutil.copytree('data/digit_scenes/val', 'data/imagenet')
    names = sorted(path.name for path in Path('data/imagenet').glob('*.png'))
    Path('data/imagenet/val.txt').write_text('\n'.join(f'{name} 999' for name in names))
    shell.shorter['focal_t_in1k.py focal'] = (
        '--cfg-options test_dataloader.dataset.ann_file=val.txt test_dataloader.batch_size=2 '
        'test_dataloader.dataset.data_prefix= test_dataloader.dataset.split='
    )
    printed = follow(repo_root / 'docs/checkpoints.md', shell)
    assert 'accuracy/top1' in printed and Path('work_dirs/finetuned/iter_2.pth').exists()
    back = read_checkpoint('back.pth')['model']
    assert back.keys() == released.keys()
    assert all(torch.equal(back[name], value) for name, value in released.items())
    (published,) = Path().glob('focal_t_maskrcnn-????????.pth')
    assert 'optimizer' not in read_checkpoint(published)


@pytest.mark.slow
def test_training_and_testing(shell, repo_root):
    """README's commands with the nano configs, one process, and what the trainings leave."""
    readme = (repo_root / 'README.md').read_text()
    (block,) = re.findall(r'```shell\n(# detection, segmentation .+?)```', readme, re.S)
    for large, small in {
        'work_dirs/focal_t_maskrcnn_3x/epoch_36.pth': 'work_dirs/focal_nano_maskrcnn/iter_4.pth',
        'detection/focal_t_maskrcnn_3x': 'quickstart/focal_nano_maskrcnn',
        'segmentation/focal_t_upernet_160k': 'quickstart/focal_nano_upernet',
        'CHECKPOINT': 'work_dirs/focal_nano_upernet/iter_2.pth',
        '.py 8\n': '.py 1\n',
        '.pth 8 ': '.pth 1 ',
    }.items():
        assert large in block, large
        block = block.replace(large, small)
    block = re.sub(r'^.*slurm_train.*\n| +# .*$', '', block, flags=re.M)
    for name in ('dist_train.sh', 'tools/train.py'):
        shell.shorter[name] = SHORTER['mmfocal train'] + ' train_dataloader.batch_size=2'
    for name in ('dist_test.sh', 'tools/test.py'):
        shell.shorter[name] = '--cfg-options test_dataloader.dataset.indices=2'
    printed = follow(_page(f'\n```shell\n{block}```\n'), shell)
    assert Path('work_dirs/focal_nano_maskrcnn/iter_4.pth').exists()  # resumed after 2
    assert len(list(Path().rglob('images/*.png'))) == 2
    assert 'mIoU' in printed


# pages of models whose commands run; others have the same ones, with the names of other models
MODELS_RUN = (
    *('detection/fasterrcnn.md', 'detection/htcpp.md'),
    *('segmentation/README.md', 'classification/README.md'),
)
# runs one task on this machine
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do
    [[ $1 == -p ]] && shift
    shift
done
SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0 MASTER_ADDR=127.0.0.1 exec "$@"
"""
FASTER_RCNN = """
_base_ = __import__('mmfocal').config('quickstart/focal_nano_maskrcnn')
model = dict(type='FasterRCNN', roi_head=dict(mask_head=None, mask_roi_extractor=None))
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
"""


def for_nano_models(block: str) -> tuple[str, str]:
    """Commands of a model's page for the nano model and one process, and the name of the run."""
    (method,) = set(re.findall(r'focal_[tl]_(?:shift_)?([a-z0-9]+?)(?:_\w+)?\.py', block))
    name = f'focal_nano_{method.replace("in1k", "cls")}'
    config = 'faster_rcnn.py' if method == 'fasterrcnn' else f'configs/quickstart/{name}.py'
    run = Path(config).stem
    block = re.sub(r'configs/\S+\.py', config, block)
    block = re.sub(r'work_dirs/\S+\.pth', f'work_dirs/{run}/iter_2.pth', block)
    block = re.sub(r'(?m)work_dirs/[a-z]\w+$', f'work_dirs/{run}', block)  # of Slurm's jobs
    block = re.sub(r'(?m) +# .*$', '', block)
    return re.sub(r'(?m) 8(?= |$)', ' 1', block), run


def commands_of_models(page: Path) -> str:
    """The block of commands of a model's page."""
    (block,) = re.findall(r'```shell\n(.+?)```', page.read_text(), re.S)
    return block


def test_models_have_equal_commands(repo_root):
    def lines(page: Path) -> set[str]:
        block = re.sub(r'(?m) +# .*$', '', commands_of_models(page))
        block = re.sub(r'configs/\S+\.py', 'CONFIG', block)
        return set(re.sub(r'work_dirs/\w+(/\w+\.pth)?', r'FILE', block).splitlines())

    configs = repo_root / 'configs'
    pages = [path for path in configs.rglob('*.md') if path.parent.name != 'quickstart']
    pages = [path for path in pages if '```shell' in path.read_text()]
    ran = set().union(*(lines(configs / page) for page in MODELS_RUN))
    assert len(pages) >= 13 and len(ran) >= 4
    for page in pages:
        assert lines(page) <= ran, page


@pytest.mark.slow
@pytest.mark.parametrize('page', MODELS_RUN)
def test_models(shell, repo_root, page):
    """The commands of a model's page, with its nano model."""
    Path('bin/srun').write_text(SRUN)
    Path('bin/srun').chmod(0o755)
    Path('faster_rcnn.py').write_text(FASTER_RCNN)
    commands, run = for_nano_models(commands_of_models(repo_root / 'configs' / page))
    for name in ('dist_train.sh', 'slurm_train.sh'):
        shell.shorter[name] = SHORTER['mmfocal train'] + ' train_dataloader.batch_size=2'
    shell.shorter['dist_test.sh'] = '--cfg-options test_dataloader.dataset.indices=2'
    follow(_page(f'\n```shell\n{commands}```\n'), shell)
    trained, *tested = shell.printed
    assert 'loss: ' in trained and Path(f'work_dirs/{run}/iter_2.pth').exists()
    metrics = dict(segmentation='mIoU', classification='accuracy/top1')
    # after two steps, no box may be certain enough to be evaluated
    metric = metrics.get(page.split('/')[0], 'bbox_mAP|results of the whole dataset is empty')
    assert tested and all(re.search(metric, printed) for printed in tested)


@pytest.mark.slow
def test_views_of_own_configs(shell, repo_root, run):
    page = (repo_root / 'docs/multi_scale.md').read_text()
    (block,) = re.findall(r'```python\n(.+?)```', page, re.S)
    smaller = block.replace('(1333, 640), (1333, 800)', '(320, 160), (320, 200)')
    assert smaller != block
    Path('views.py').write_text(f"_base_ = './my_detector.py'\n{smaller}")
    command = f'mmfocal test views.py {run}/iter_1.pth --tta'
    options = 'model.test_cfg.rcnn.score_thr=0 test_dataloader.dataset.indices=2'
    printed = follow(_page(f'\n```shell\n{command} --cfg-options {options}\n```\n'), shell)
    assert 'coco/segm_mAP' in printed


@pytest.mark.parametrize(
    ('page', 'kind', 'batch'),
    [('configs', 'MaskRCNN', 4), ('reppointsv2', 'RepPointsV2Detector', 2)],
)
def test_configs(tmp_path, monkeypatch, repo_root, page, kind, batch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(
        r'```python\n(.+?)```', (repo_root / f'docs/{page}.md').read_text(), re.S
    )
    Path('my_config.py').write_text(block)
    cfg = Config.fromfile('my_config.py')
    assert cfg.train_dataloader.batch_size == batch and cfg.model.type == kind
    config_suite.build_meta(cfg)


def _page(text: str) -> Path:
    Path('page.md').write_text(text)
    return Path('page.md')
