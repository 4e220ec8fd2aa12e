# SPDX-License-Identifier: Apache-2.0
"""Metrics that would fail after the first validation are named at the start."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS, DefaultScope
from pycocotools import mask as coco_mask

from mmfocal.engine.checks.settings import check_metrics, check_monitors
from mmfocal.engine.findings import Findings

COCO = dict(type='CocoMetric', metric=['bbox', 'segm'])
ACCURACY = dict(type='Accuracy', topk=(1, 2))
MASKS = dict(type='MaskRCNN', roi_head=dict(mask_head=dict(type='FCNMaskHead')))
BOXES = dict(type='ATSS', data_preprocessor=dict(pad_mask=True), bbox_head=dict(type='ATSSHead'))
TWO_STAGES = dict(type='FasterRCNN', roi_head=dict(mask_head=None), train_cfg=dict(mask_size=28))
ANYTHING = dict(type='RTMDet', bbox_head=dict(type='RTMDetInsSepBNHead'))


def findings_of(metric: Any, model: dict = MASKS, **settings) -> Findings:
    findings = Findings(quiet=True)
    cfg = Config(dict(model=model, val_dataloader=dict(a=1), val_evaluator=metric, **settings))
    check_metrics(cfg, 'val', findings)
    check_monitors(cfg, findings)
    return findings


@pytest.mark.parametrize(
    ('metric', 'words'),
    [
        (dict(COCO, metric='bbbox'), r"val_evaluator\.metric='bbbox': .*expected bbox, segm, pro"),
        (dict(COCO, metric=['bbox', 'seg']), "'seg' is unknown; .*; did you mean 'segm'?"),
        (dict(COCO, metric=('bbox', 'segm')), r"metric=\('bbox', 'segm'\); expected a list"),
        (dict(COCO, metric_items=['mAP', 'mAP50']), "'mAP50' is unknown; .* you mean 'mAP_50'?"),
        (dict(COCO, proposal_nums=[100]), r'proposal_nums=\[100\]; expected three numbers'),
        ([COCO, dict(type='mmseg.IoUMetric', iou_metrics=['mIuO'])], r'val_evaluator\.1\.iou_met'),
        (dict(type='IoUMetric', iou_metrics='miou'), "'miou' is unknown; .* did you mean 'mIoU'"),
        (dict(type='IoUMetric', iou_metric=['mDice']), 'the nearest argument is iou_metrics'),
        (dict(type='SingleLabelMetric', items=['f1']), "'f1' is unknown; expected precision, "),
        (dict(type='SingleLabelMetric', average='makro'), "did you mean 'macro'?"),
        (dict(type='MultiLabelMetric', items=('precison',)), "did you mean 'precision'?"),
        (dict(type='AveragePrecision', average='micro'), "'micro' is unknown; expected macro"),
        (dict(metrics=[dict(COCO, metric='box')]), r'val_evaluator\.metrics\.0\.metric'),
    ],
)  # fmt: skip
def test_unknown_values_of_metrics_are_named(metric, words):
    (error,) = findings_of(metric).errors
    assert re.search(words, error)


@pytest.mark.parametrize(
    ('metric', 'nearest'), [('bbbox', 'bbox'), (['bbox', 'seg'], ['bbox', 'segm'])]
)
def test_the_nearest_value_is_a_line_to_write(metric, nearest):
    assert findings_of(dict(COCO, metric=metric)).lines == {'val_evaluator.metric': nearest}


@pytest.mark.parametrize('model', [BOXES, TWO_STAGES, dict(module=BOXES)])
def test_masks_of_a_model_without_masks_cannot_be_scored(model):
    found = findings_of(COCO, model)
    assert len(found.errors) == 1 and 'scores masks (segm), but the model' in found.errors[0]
    assert found.lines == {'val_evaluator.metric': ['bbox']}
    assert not findings_of(dict(COCO, metric='bbox'), model).errors


@pytest.mark.parametrize('model', [MASKS, ANYTHING, dict(type='Own'), {}])
def test_models_that_may_have_masks_pass(model):
    assert not findings_of(COCO, model).errors


# ---- names of scores ---------------------------------------------------------------------------


def built(metric: dict, scope: str) -> BaseMetric:
    with DefaultScope.overwrite_default_scope(scope):
        metric = METRICS.build(metric)
    metric.dataset_meta = dict(classes=('ring', 'pin'))
    return metric


def scored_boxes(root: Path, **changes) -> dict:
    """Scores of one object, as mmdet computes them."""
    pytest.importorskip('mmdet')
    rle = coco_mask.encode(np.ones((20, 30), np.uint8, 'F'))
    annotation = dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 30, 20], area=600, iscrowd=0)
    annotation['segmentation'] = [[0, 0, 30, 0, 30, 20, 0, 20]]
    content = dict(
        images=[dict(id=1, height=20, width=30, file_name='a.png')],
        annotations=[annotation],
        categories=[dict(id=1, name='ring'), dict(id=2, name='pin')],
    )
    (root / 'a.json').write_text(json.dumps(content))
    metric = built(dict(COCO, ann_file=str(root / 'a.json'), **changes), 'mmdet')
    instance = dict(
        bboxes=torch.tensor([[0.0, 0, 30, 20]]), scores=torch.ones(1), labels=torch.zeros(1).long()
    )
    metric.process({}, [dict(img_id=1, ori_shape=(20, 30), pred_instances=dict(masks=[rle], **instance))])  # fmt: skip  # noqa: E501
    return metric.evaluate(1)


def scored_maps(**changes) -> dict:
    pytest.importorskip('mmseg')
    metric = built(dict(type='IoUMetric', **changes), 'mmseg')
    metric.results = [(torch.ones(2), torch.ones(2), torch.ones(2), torch.ones(2))]
    return metric.evaluate(1)


def scored_labels(**metric) -> dict:
    pytest.importorskip('mmpretrain')
    metric = built(metric, 'mmpretrain')
    metric.results = [
        dict(pred_score=torch.tensor([0.2, 0.8]), gt_label=torch.tensor([label]), num_classes=2)
        for label in (0, 1)
    ]
    return metric.evaluate(2)


@pytest.mark.parametrize(
    ('metric', 'score'),
    [
        (COCO, scored_boxes),
        (dict(COCO, prefix='own', metric_items=['mAP_50']), scored_boxes),
        (dict(type='IoUMetric'), scored_maps),
        (dict(type='IoUMetric', iou_metrics=['mDice', 'mFscore']), scored_maps),
        (ACCURACY, scored_labels),
        (dict(type='SingleLabelMetric', items=['recall', 'support']), scored_labels),
    ],
)
def test_checkpoints_are_selected_by_scores_that_are_computed(tmp_path, metric, score):
    changes = {name: value for name, value in metric.items() if name not in ('type', 'metric')}
    if score is scored_boxes:
        changes['root'] = tmp_path
    names = list(score(**(metric if score is scored_labels else changes)))
    assert names
    for name in names:
        hooks = dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best=name)))
        assert not findings_of(metric, **hooks).errors
        hooks['default_hooks']['checkpoint']['save_best'] = ['auto', f'{name}x']
        (error,) = findings_of(metric, **hooks).errors
        assert f"does not compute '{name}x'; did you mean '{name}'?" in error


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(custom_hooks=[dict(type='EarlyStoppingHook', monitor='bbox_mAP')]),
         "custom_hooks.0.monitor='bbox_mAP': .*did you mean 'coco/bbox_mAP'?"),
        (dict(custom_hooks=[dict(type='CheckpointHook', save_best='loss')]), 'save_best=.*expect'),
        (dict(param_scheduler=[dict(type='ReduceOnPlateauLR')]),
         "param_scheduler.0.monitor='loss': val_evaluator does not compute 'loss'; expected coco"),
    ],
)  # fmt: skip
def test_monitors_that_are_not_computed_are_named(settings, words):
    (error,) = findings_of(COCO, **settings).errors
    assert re.search(words, error)


@pytest.mark.parametrize(
    'metric',
    [
        None,
        [COCO, dict(type='Own')],
        dict(COCO, classwise=True),
        dict(ACCURACY, thrs=(0.1, 0.5)),
        dict(type='SingleLabelMetric', average=None),
    ],
)
def test_metrics_whose_scores_are_unknown_may_compute_any(metric):
    assert not findings_of(metric, param_scheduler=dict(type='ReduceOnPlateauLR')).errors
