# SPDX-License-Identifier: Apache-2.0
"""Files for test servers, from test sets that have no annotations."""

import json
import pickle

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from pycocotools import mask as rle
from torch import nn


@pytest.fixture
def unannotated(workspace):
    """Let ``data/digit_scenes`` hold the files of ``test`` alone, as a test set has them."""
    link = workspace / 'data' / 'digit_scenes'
    scenes = link.resolve()
    link.unlink()
    (link / 'annotations').mkdir(parents=True)
    (link / 'test').symlink_to(scenes / 'val', target_is_directory=True)
    content = json.loads((scenes / 'annotations' / 'instances_val.json').read_text())
    del content['annotations']
    (link / 'annotations' / 'image_info_test.json').write_text(json.dumps(content))
    return content


def save_model(config, path, *scaled: str) -> None:
    """Save random weights; scaled layers make predictions distinct."""
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    for name, param in model.named_parameters():
        if name.endswith(scaled):
            nn.init.normal_(param)
    torch.save({'state_dict': model.state_dict()}, path)


def test_instances_as_coco_takes_them(run, workspace, repo_root, unannotated):
    config = repo_root / 'configs' / 'quickstart' / 'focal_nano_maskrcnn_jitter.py'
    save_model(config, workspace / 'model.pth', 'fc_cls.weight', 'conv_logits.weight')
    options = ['--tta', '--format-only', 'out/x', '--cfg-options']
    options += [
        'test_dataloader.dataset.ann_file=annotations/image_info_test.json',
        'test_dataloader.dataset.data_prefix.img=test/',
        'test_evaluator.ann_file=data/digit_scenes/annotations/image_info_test.json',
    ]
    run('test.py', config, 'model.pth', *options)
    written = {
        kind: json.loads((workspace / 'out' / f'x.{kind}.json').read_text())
        for kind in ('bbox', 'segm')
    }
    images = {image['id']: (image['height'], image['width']) for image in unannotated['images']}
    categories = {category['id'] for category in unannotated['categories']}
    assert len(written['bbox']) == len(written['segm']) > len(images)
    for box, segment in zip(written['bbox'], written['segm']):
        assert set(box) == {'image_id', 'category_id', 'bbox', 'score'}
        assert set(segment) == {*box, 'segmentation'}
        assert {key: segment[key] for key in box} == box
        height, width = images[box['image_id']]
        x, y, w, h = box['bbox']
        assert 0 <= x <= x + w <= width + 1e-3 and 0 <= y <= y + h <= height + 1e-3
        assert box['category_id'] in categories and 0 < box['score'] <= 1
        assert rle.decode(segment['segmentation']).shape == (height, width)
    assert {box['image_id'] for box in written['bbox']} == set(images)


def test_label_maps_as_ade20k_takes_them(run, workspace, repo_root, unannotated):
    config = repo_root / 'configs' / 'quickstart' / 'focal_nano_upernet.py'
    save_model(config, workspace / 'model.pth', 'conv_seg.weight')
    options = ['--tta', '--format-only', 'maps', '--out', 'found.pkl', '--cfg-options']
    options += ['test_dataloader.dataset.data_prefix.img_path=test']
    # as ADE20K: the data set numbers its classes from 1, 0 is unlabeled
    options += ['test_dataloader.dataset.reduce_zero_label=True']
    run('test.py', config, 'model.pth', *options)
    found = pickle.loads((workspace / 'found.pkl').read_bytes())
    names = {image['file_name'] for image in unannotated['images']}
    assert {path.name for path in (workspace / 'maps').iterdir()} == names
    seen = set()
    for sample in found:
        with Image.open(workspace / 'maps' / sample['img_path'].split('/')[-1]) as image:
            assert image.mode == 'L'
            labels = np.asarray(image)
        predicted = sample['pred_sem_seg']['data'].squeeze().numpy()
        assert labels.shape == sample['ori_shape'] and (labels == predicted + 1).all()
        seen.update(labels.flat)
    assert len(seen) > 2 and min(seen) >= 1
