# SPDX-License-Identifier: Apache-2.0
"""Checks of evaluators: values that the hosts reject after the first validation only."""

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config

from ..config_shape import metrics_of
from ..findings import Findings
from ..machine import dicts_in, kind_of
from ..options import nearest
from .settings import checkpoint_hooks, schedulers

_OF_BOXES = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
_OF_PROPOSALS = ('AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000')
_OF_LABELS = ('precision', 'recall', 'f1-score', 'support')
# known values by type and argument of a metric
_CHOICES: dict[str, dict[str, Sequence[str | None]]] = {
    'CocoMetric': {
        'metric': ('bbox', 'segm', 'proposal', 'proposal_fast'),
        'metric_items': (*_OF_BOXES, *_OF_PROPOSALS),
    },
    'IoUMetric': {'iou_metrics': ('mIoU', 'mDice', 'mFscore')},
    'SingleLabelMetric': {'items': _OF_LABELS, 'average': ('micro', 'macro', None)},
    'MultiLabelMetric': {'items': _OF_LABELS, 'average': ('micro', 'macro', None)},
    'AveragePrecision': {'average': ('macro', None)},
}
# mmpretrain's metrics that compare with the class of an image
_OF_CLASSES = ('Accuracy', 'SingleLabelMetric', 'MultiLabelMetric', 'ConfusionMatrix')
_OF_CLASSES += ('AveragePrecision',)
_OF_IOU_METRIC = (
    *('type', '_scope_', 'ignore_index', 'iou_metrics', 'nan_to_num', 'beta', 'collect_device'),
    *('output_dir', 'format_only', 'prefix'),
)
_OF_MAPS = {
    'mIoU': ('mIoU', 'mAcc'),
    'mDice': ('mDice', 'mAcc'),
    'mFscore': ('mFscore', 'mPrecision', 'mRecall'),
}
_PREFIXES = {'CocoMetric': 'coco', 'Accuracy': 'accuracy', 'SingleLabelMetric': 'single-label'}


def check_metrics(cfg: Config, split: str, findings: Findings) -> None:
    """Check what the metrics of a split compute.

    Args:
        cfg: Complete config.
        split: ``train``, ``val`` or ``test``.
        findings: Collects the errors.
    """
    for key, metric in metrics_of(cfg, split):
        for name, choices in _CHOICES.get(kind_of(metric), {}).items():
            _check_choices(f'{key}.{name}', metric.get(name, choices[0]), choices, findings)
        if kind_of(metric) == 'IoUMetric':  # it ignores arguments that it does not have
            for name in metric.keys() - set(_OF_IOU_METRIC):
                if near := nearest(name, _OF_IOU_METRIC, 0.6):
                    findings.error(
                        f'{key}.{name}={metric[name]!r}: IoUMetric has no argument {name!r}; the '
                        f'nearest argument is {near}'
                    )
        if kind_of(metric) == 'CocoMetric':
            _check_coco_metric(key, metric, cfg.get('model') or {}, findings)


def _check_choices(
    key: str, value: Any, choices: Sequence[str | None], findings: Findings
) -> None:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    for each in values if value is not None else ():
        if each not in choices:
            names = [str(choice) for choice in choices if choice]
            near = nearest(str(each), names, 0.6)
            better = [near if other == each else other for other in values]
            findings.error(
                f'{key}={value!r}: {each!r} is unknown; expected {", ".join(names)}'
                + (f'; did you mean {near!r}?' if near else ''),
                {key: near if isinstance(value, str) else better} if near else None,
            )


def _check_coco_metric(key: str, metric: dict, model: dict, findings: Findings) -> None:
    kinds = metric.get('metric', 'bbox')
    if isinstance(kinds, tuple):
        findings.error(f'{key}.metric={kinds!r}; expected a list', {f'{key}.metric': list(kinds)})
    numbers = metric.get('proposal_nums')
    if isinstance(numbers, (list, tuple)) and len(numbers) < 3:
        findings.error(f'{key}.proposal_nums={numbers!r}; expected three numbers of detections')
    if 'segm' in _as_list(kinds) and _lacks_masks(model):
        boxes = [kind for kind in _as_list(kinds) if kind != 'segm'] or ['bbox']
        findings.error(
            f'{key}.metric={kinds!r} scores masks (segm), but the model ({model.get("type")}) '
            'predicts none; expected metric without segm',
            {f'{key}.metric': boxes},
        )


def _lacks_masks(model: dict) -> bool:
    """Return whether a detector predicts boxes only.

    Two-stage detectors have a mask head; instance segmentors of other types name masks somewhere.
    """
    model = model.get('module', model)  # --tta has wrapped it
    roi_head = model.get('roi_head')
    if isinstance(roi_head, dict):
        return not roi_head.get('mask_head')
    parts = {name: part for name, part in model.items() if name != 'data_preprocessor'}
    words = [word for part in dicts_in(parts) for word in (*part, str(part.get('type')))]
    return bool(model.get('bbox_head')) and not any(
        hint in str(word) for word in words for hint in ('mask', 'Mask', 'Ins', 'Seg')
    )


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def check_topk(cfg: Config, split: str, count: int, findings: Findings) -> None:
    """Check that ``topk`` of a classifier's metrics does not exceed the number of classes.

    Args:
        cfg: Complete config.
        split: ``train``, ``val`` or ``test``.
        count: Number of classes.
        findings: Collects the errors.
    """
    for key, metric in metrics_of(cfg, split):
        topk = _as_list(metric.get('topk') or ())
        if any(k > count for k in topk):
            findings.error(
                f'{key}.topk={tuple(topk)}, but there are {count} classes',
                {f'{key}.topk': tuple(k for k in topk if k <= count) or (1,)},
            )


# ---- labels of evaluated data ------------------------------------------------------------------


def check_labels(cfg: Config, split: str, key: str, dataset: dict, findings: Findings) -> None:
    """Check that data which is evaluated is read with its labels.

    Args:
        cfg: Complete config.
        split: ``train``, which is not checked, ``val`` or ``test``.
        key: Key of a data set in the config.
        dataset: Its config.
        findings: Collects the errors.
    """
    metrics = [metric for _, metric in metrics_of(cfg, split) if not metric.get('format_only')]
    kinds = set(map(kind_of, metrics))
    name, lack = next((kind for kind in _OF_CLASSES if kind in kinds), None), ''
    if name and cfg.get('default_scope') == 'mmpretrain' and not dataset.get('with_label', True):
        lack = 'with_label=False; expected with_label=True'
    elif 'IoUMetric' in kinds and not loads_annotations(dataset):
        name, lack = 'IoUMetric', 'pipeline has no LoadAnnotations; expected this step'
    if lack and split != 'train':
        findings.error(
            f'{key}.{lack}, because {split}_evaluator ({name}) compares with labels'
            + ', or no validation: val_dataloader, val_cfg and val_evaluator None'
            * (split == 'val')
        )


def loads_annotations(dataset: dict) -> bool:
    """Return whether a data set has no pipeline of its own, or one that loads annotations.

    Args:
        dataset: Its config.
    """
    steps = dataset.get('pipeline')
    return steps is None or any('Annotation' in kind_of(step) for step in dicts_in(steps))


# ---- names of scores ---------------------------------------------------------------------------


def check_monitors(cfg: Config, findings: Findings) -> None:
    """Check that scores which select checkpoints, or stop the training, are computed.

    MMEngine looks for them after the first validation.

    Args:
        cfg: Complete config, of which validations and their metrics are read.
        findings: Collects the errors.
    """
    if not (cfg.get('val_dataloader') and cfg.get('val_evaluator')):
        return
    parts = [_scores(metric) for _, metric in metrics_of(cfg, 'val')]
    known = {name for part in parts for name in part or ()}
    if None in parts or not known:
        return  # metrics of other types may give any
    for key, value in _monitors(cfg):
        for name in _as_list(value):
            if name in known or name in (None, 'auto'):
                continue
            near = nearest(name, known, 0.6)
            findings.error(
                f'{key}={value!r}: val_evaluator does not compute {name!r}; '
                + (f'did you mean {near!r}?' if near else '')
                + (f'expected {" or ".join(sorted(known))}' if not near else ''),
                {key: near} if near and name == value else None,
            )


def _monitors(cfg: Config) -> Iterator[tuple[str, Any]]:
    """Yield key and value of each setting that names scores."""
    for key, hook in checkpoint_hooks(cfg):
        yield f'{key}.save_best', hook.get('save_best')
    for index, hook in enumerate(cfg.get('custom_hooks') or ()):
        if kind_of(hook) == 'EarlyStoppingHook':
            yield f'custom_hooks.{index}.monitor', hook.get('monitor')
    for key, scheduler in schedulers('param_scheduler', cfg.get('param_scheduler')):
        if 'Plateau' in kind_of(scheduler):
            yield f'{key}.monitor', scheduler.get('monitor', 'loss')


def _scores(metric: dict) -> set[str] | None:
    """Return the names of the scores that a metric computes, None if they are unknown."""
    kind = kind_of(metric)
    if metric.get('format_only') or isinstance(metric.get('thrs'), (list, tuple)):
        return None
    if kind == 'CocoMetric' and not metric.get('classwise'):
        kinds = _as_list(metric.get('metric', 'bbox'))
        items = metric.get('metric_items')
        names = {f'{each}_{item}' for each in kinds for item in items or _OF_BOXES}
        if {'proposal', 'proposal_fast'} & set(kinds):
            names |= {*(items or _OF_PROPOSALS)} | {
                f'AR@{number}' for number in metric.get('proposal_nums', ())
            }
    elif kind == 'IoUMetric':
        chosen = _as_list(metric.get('iou_metrics', 'mIoU'))
        names = {'aAcc', *(name for each in chosen for name in _OF_MAPS.get(each, ()))}
    elif kind == 'Accuracy':
        names = {'top1', *(f'top{k}' for k in _as_list(metric.get('topk', 1)))}
    elif kind == 'SingleLabelMetric' and metric.get('average', 'macro') == 'macro':
        names = set(metric.get('items', _OF_LABELS[:3]))
    else:
        return None
    prefix = metric.get('prefix') or _PREFIXES.get(kind)
    return {f'{prefix}/{name}' if prefix else name for name in names}
