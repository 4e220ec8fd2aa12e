# SPDX-License-Identifier: Apache-2.0
"""``tools/train.py`` and ``tools/test.py`` refuse bad input before anything is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from runpy import run_path

import cv2
import numpy as np
import pytest

from mmfocal.errors import in_one_line

Refusal = Callable[..., str]
MASK_RCNN = 'focal_nano_maskrcnn'
UPERNET = 'focal_nano_upernet'


@pytest.fixture
def refusal(
    workspace: Path, repo_root: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> Refusal:
    """Give the workspace its own copy of the scenes; run a tool and return why it refused."""
    root = workspace / 'data' / 'digit_scenes'
    root.unlink()
    shutil.copytree(scenes, root)
    monkeypatch.chdir(workspace)

    def refused(config: str, *arguments: str, tool: str = 'train.py') -> str:
        path = repo_root / 'configs' / 'quickstart' / f'{config}.py'
        main = run_path(str(repo_root / 'tools' / tool))['main']
        with pytest.raises(SystemExit) as error, in_one_line():
            main([str(path), *arguments, '--work-dir', 'out'])
        assert not (workspace / 'out').exists(), 'a runner was built'
        return str(error.value).removeprefix('error: ')

    return refused


def test_one_image_per_process_and_batch_norm(refusal):
    message = refusal(UPERNET, '--cfg-options', 'train_dataloader.batch_size=1')
    assert 'train_dataloader.batch_size=1: batch norm in model.decode_head (UPerHead)' in message
    assert 'expected at least 2 images per process' in message


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_widths_that_disagree(refusal, workspace, tool):
    (workspace / 'model.pth').touch()
    checkpoint = ['model.pth'] if tool == 'test.py' else []
    option = ['--cfg-options', 'model.backbone.out_indices=1,2,3']
    message = refusal(MASK_RCNN, *checkpoint, *option, tool=tool)
    assert f'{MASK_RCNN}.py: model.neck.in_channels=[32, 64, 128, 256]' in message
    assert 'out_indices=(1, 2, 3)), which gives [64, 128, 256] channels' in message


@pytest.mark.parametrize(
    ('options', 'mine', 'words'),
    [
        ('--out found.pkl', 'found.pkl', 'found.pkl exists; --overwrite replaces it'),
        ('--out model.pkl --overwrite', 'model.pkl', 'model.pkl is the input model.pkl'),
        ('--format-only x', 'x.segm.json', 'x.segm.json exists; --overwrite replaces it'),
    ],
)
def test_existing_files(refusal, workspace, options, mine, words):
    for name in ('model.pkl', mine):
        (workspace / name).write_text('mine')
    assert words in refusal(MASK_RCNN, 'model.pkl', *options.split(), tool='test.py')
    assert (workspace / mine).read_text() == 'mine'


def test_numbers_of_classes_that_disagree(refusal):
    option = ['--cfg-options', 'model.roi_head.mask_head.num_classes=80']
    message = refusal(MASK_RCNN, *option)
    assert 'model.roi_head.mask_head.num_classes=80, but train_dataloader.data' in message
    assert message.endswith('model = dict(roi_head=dict(mask_head=dict(num_classes=10)))')


def test_a_root_without_files(refusal, workspace):
    shutil.rmtree(workspace / 'data' / 'digit_scenes')
    (workspace / 'data' / 'digit_scenes' / 'train').mkdir(parents=True)
    message = refusal(UPERNET)
    assert 'train_dataloader.dataset.data_root: expected a folder with files' in message
    assert 'data/digit_scenes/' in message and 'tools/data/make_digit_scenes.py' in message


def test_an_unknown_category(refusal, workspace):
    path = workspace / 'data/digit_scenes/annotations/instances_val.json'
    edit(path, lambda content: content['annotations'][3].update(category_id=77))
    message = refusal(MASK_RCNN)
    assert message.startswith('val_dataloader.dataset.ann_file: 1 of ')
    assert 'instances_val.json' in message and 'category_id=77' in message


def test_a_missing_image(refusal, workspace):
    (workspace / 'data/digit_scenes/train/000005.png').unlink()
    message = refusal(MASK_RCNN)
    assert message.startswith('train_dataloader.dataset.ann_file: 1 of 16 images')
    assert message.endswith('data/digit_scenes/train/000005.png')


def test_a_missing_stuff_map(refusal, workspace):
    (workspace / 'data/digit_scenes/stuffthingmaps/train/000005.png').unlink()
    message = refusal('focal_nano_htcpp')
    assert message.startswith('train_dataloader.dataset.data_prefix.seg: 1 of 16 label maps')
    assert message.endswith('stuffthingmaps/train/000005.png')


def test_ade20k_with_unreduced_labels(refusal, workspace):
    labels = workspace / 'data/digit_scenes/annotations/val/000002.png'
    cv2.imwrite(str(labels), np.full((160, 160), 150, np.uint8))
    options = [
        f'{split}_dataloader.dataset.{setting}'
        for split in ('train', 'val')
        for setting in ('type=ADE20KDataset', 'metainfo=None', 'reduce_zero_label=False')
    ]
    loaders = ('train_dataloader.dataset.pipeline.1', 'val_dataloader.dataset.pipeline.2')
    options += [f'{loader}.reduce_zero_label=False' for loader in loaders]
    heads = [f'model.{head}_head.num_classes=150' for head in ('decode', 'auxiliary')]
    message = refusal(UPERNET, '--cfg-options', *options, *heads)
    # the training set by what it lacks, the validation set by what it has
    first, second = message.split('1. ')[1].split('\n2. ')
    assert first.startswith('train_dataloader.dataset.data_prefix.seg_map_path: reduce_zero')
    assert second.startswith('val_dataloader.dataset.data_prefix.seg_map_path: ')
    assert '000002.png has label 150; expected 0 to 149, or 255 for none' in second
