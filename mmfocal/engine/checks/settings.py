# SPDX-License-Identifier: Apache-2.0
"""Checks of settings: channels, classes, data loaders, schedule and evaluators.

For the channels, modules run on PyTorch's meta device, where tensors have shapes, no values. Any
registered module is checked in a fraction of a second and without memory. Modules that do not run
there, such as deformable convolutions, are not checked, and neither are the modules after them.
"""

import inspect
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import LOOPS, MODELS, OPTIMIZERS, DefaultScope
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import Tensor

from mmfocal.errors import InputError
from mmfocal.settings import world_size

from ..config_shape import check_type, metrics_of
from ..findings import Findings, first_few
from ..machine import dicts_in, kind_of
from ..meta_model import build_meta_model
from ..options import nearest, nearest_argument, registered

Maps = Sequence[Tensor]

_HEADS = (
    *('rpn_head', 'bbox_head', 'mask_head', 'panoptic_head'),
    *('decode_head', 'auxiliary_head', 'head'),
)
_COUNTS = ('in_index', 'num_ins')  # indices or number of the maps that a head uses
_BAD_ARGUMENTS = (AssertionError, IndexError, KeyError, TypeError, ValueError)
_ENDLESS = ('InfiniteSampler', 'MultiSourceSampler', 'GroupMultiSourceSampler')  # MMEngine, mmdet
_FEW = 10  # a smaller interval counts epochs rather than iterations
# Modules whose num_classes has another meaning: pre-training, foreground, stuff, boundaries
_OTHER_PARTS = ('backbone', 'rpn_head', 'semantic_head')
_OTHER_TYPES = ('STDCHead',)
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


# ---- numbers of classes ------------------------------------------------------------------------


def check_num_classes(
    model: dict, key: str, classes: Sequence[str] | None, findings: Findings
) -> None:
    """Check ``num_classes`` like mmdet's ``NumClassCheckHook``.

    Args:
        model: The config's model; not checked if its classes are given by text.
        key: Key of the data set's classes in the config.
        classes: Class names of the data set; None skips the check.
        findings: Collects an error per head whose ``num_classes`` differs.
    """
    if not classes or 'language_model' in model:
        return
    for head_key, found in num_classes_of('model', model):
        if found != len(classes):
            findings.error(
                f'{head_key}={found}, but {key} has {len(classes)} classes: '
                f'{first_few(classes, 5)}',
                {head_key: len(classes)},
            )


def num_classes_of(key: str, node: Any) -> Iterator[tuple[str, int]]:
    """Yield key and value of every ``num_classes`` of a head."""
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    elif not isinstance(node, dict) or node.get('type') in _OTHER_TYPES:
        return
    for name, child in node.items():
        if name == 'num_classes':
            yield f'{key}.{name}', child
        elif name not in _OTHER_PARTS:
            yield from num_classes_of(f'{key}.{name}', child)


def check_class_count(cfg: Config, classes: tuple[int, str], findings: Findings) -> None:
    """Check ``num_classes`` of the preprocessor, which makes one-hot labels.

    Args:
        cfg: Complete config.
        classes: Number of classes and the key and words that tell it.
        findings: Collects the errors.
    """
    number, source = classes
    model = cfg.get('model') or {}
    for key, settings in (
        ('data_preprocessor', cfg.get('data_preprocessor')),
        ('model.data_preprocessor', model.get('data_preprocessor')),
    ):
        count = (settings or {}).get('num_classes')
        if count is not None and count != number:
            findings.error(
                f'{key}.num_classes={count}, but {source}', {f'{key}.num_classes': number}
            )


# ---- channels ----------------------------------------------------------------------------------


def check_widths(cfg: Config, trains: bool = True) -> None:
    """Check that the input channels of every module match the output of the previous one.

    With ``train_dataloader.batch_size=1``, modules also run in training mode, see
    ``check_single_image``.

    Args:
        cfg: Config; its ``model`` is checked if it has a ``backbone``.
        trains: Whether the model will be trained.

    Raises:
        ValueError: If channels differ; names config file, key, value and actual channels.
    """
    if trains and (cfg.get('train_dataloader') or {}).get('batch_size') == 1:
        check_single_image(cfg, 'train_dataloader.batch_size=1')
    else:
        _check(cfg)


def check_single_image(cfg: Config, reason: str) -> None:
    """Check that modules run in training mode on a batch of one image.

    Batch norm of a single value per channel is impossible.

    Args:
        cfg: Config; its ``model`` is checked if it has a ``backbone``.
        reason: Setting that leads to such a batch.

    Raises:
        ValueError: If modules do not run, or as by ``check_widths``.
    """
    _check(cfg, reason)


def _check(cfg: Config, single: str | None = None) -> None:
    model = cfg.get('model') or {}
    if not model.get('backbone'):
        return
    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope'))
    with scope, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # the real model repeats the warnings
        try:
            _check_model(model, single)
        except ValueError as error:
            raise InputError(f'{cfg.filename}: {error}') from error


def _check_model(model: dict, single: str | None) -> None:
    giver, maps = _run_backbone(model['backbone'])
    for key, neck in _parts('model.neck', model.get('neck')):
        maps = maps and _check_part(key, neck, giver, maps)
        giver = f'{key} ({neck.get("type")})'
    if not maps:
        return
    roi_head = model.get('roi_head') or {}
    heads = {f'model.{name}': model.get(name) for name in _HEADS}
    heads['model.roi_head.semantic_head'] = roi_head.get('semantic_head')
    for name, listed in heads.items():
        for key, head in _parts(name, listed):
            _check_part(key, head, giver, maps)
            if single:
                _check_single(key, head, maps, single)
    for task in ('bbox', 'mask'):
        _check_roi_head(task, roi_head, giver, maps)


def _run_backbone(backbone: dict) -> tuple[str, Maps | None]:
    """Run the backbone; return its description and its maps, None if it does not run."""
    kind = backbone.get('type')
    check_type('model.backbone', kind)
    try:
        module = build_meta_model(backbone)
    except _BAD_ARGUMENTS as error:
        hint = _nearest_argument(backbone, error)
        raise ValueError(f'model.backbone ({kind}) cannot be built: {error!r}{hint}') from error
    except Exception:  # unsupported on the meta device, but possibly not on others
        return kind, None
    maps = None
    with suppress(Exception):  # the real model has a better message
        maps = _as_maps(module(_image(backbone)))
    indices = getattr(module, 'out_indices', None)
    return f'model.backbone ({kind}, out_indices={indices})', maps


def _nearest_argument(part: dict, error: Exception) -> str:
    kind = part.get('type')
    builder = registered(MODELS, kind, None) if isinstance(kind, str) else kind
    return nearest_argument(builder, error)


def _image(backbone: dict) -> Tensor:
    size = backbone.get('img_size', 224)  # some backbones have a fixed size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return torch.empty(2, backbone.get('in_channels', 3), height, width, device='meta')


def _check_part(key: str, part: dict, giver: str, maps: Maps) -> Maps | None:
    """Run a neck or head and return its maps, if any.

    The meaning of ``in_channels`` varies: YOLOv3's neck lists it in reverse, classifiers use the
    last map only. A difference is therefore reported only if the module does not run.
    """
    outputs = None
    with suppress(Exception):
        outputs = build_meta_model(part)(maps)
    if outputs is None and not _fits(part, [each.shape[1] for each in maps]):
        given = [f'{name}={part[name]}' for name in ('in_channels', *_COUNTS) if name in part]
        _raise_misfit(f'{key}.{", ".join(given)}', giver, maps)
    return _as_maps(outputs)


def _check_single(key: str, part: dict, maps: Maps, reason: str) -> None:
    """Run a head in training mode on one image."""
    try:
        build_meta_model(part).train()([each[:1] for each in maps])
    except ValueError as error:
        if 'more than 1 value per channel' in str(error):
            raise ValueError(
                f'{reason}: batch norm in {key} ({part.get("type")}) gets a '
                'single value per channel; expected at least 2 images per process, or another '
                'norm (norm_cfg)'
            ) from error
    except Exception:  # as in _check_part
        return


def _fits(part: dict, widths: list[int]) -> bool:
    expected, chosen = part.get('in_channels'), part.get('in_index')
    if expected is None:
        return True
    if 'num_ins' in part:
        return widths == [expected] * part['num_ins']
    if chosen is None and isinstance(expected, int):
        chosen = -1
    if chosen is not None:
        chosen = [chosen] if isinstance(chosen, int) else chosen
        if any(not -len(widths) <= index < len(widths) for index in chosen):
            return False
        widths = [widths[index] for index in chosen]
    if isinstance(expected, int):
        expected = [expected] * len(widths)
    return list(expected) == widths


def _check_roi_head(task: str, roi_head: dict, giver: str, maps: Maps) -> None:
    """Compare channel numbers only, because RoIAlign does not run on the meta device."""
    extractor = roi_head.get(f'{task}_roi_extractor')
    if not isinstance(extractor, dict) or extractor.get('type') != 'SingleRoIExtractor':
        return
    width, strides = extractor['out_channels'], extractor['featmap_strides']
    key = f'model.roi_head.{task}_roi_extractor'
    if [each.shape[1] for each in maps[: len(strides)]] != [width] * len(strides):
        _raise_misfit(f'{key}.out_channels={width}, featmap_strides={strides}', giver, maps)
    if 'shared_head' in roi_head:  # it lies between the extractor and the heads
        return
    for head_key, head in _parts(f'model.roi_head.{task}_head', roi_head.get(f'{task}_head')):
        if head.get('in_channels', width) != width:
            raise ValueError(
                f'{head_key}.in_channels={head["in_channels"]} does not fit '
                f'{key}.out_channels={width}'
            )


def _raise_misfit(setting: str, giver: str, maps: Maps) -> None:
    widths = [each.shape[1] for each in maps]
    raise ValueError(f'{setting} does not fit {giver}, which gives {widths} channels')


def _parts(key: str, parts: dict | Sequence[dict] | None) -> Iterator[tuple[str, dict]]:
    """Yield key and config of a module, or of each module in a list."""
    if isinstance(parts, dict):
        yield key, parts
    else:
        yield from ((f'{key}.{index}', part) for index, part in enumerate(parts or ()))


def _as_maps(outputs: Any) -> Maps | None:
    if not isinstance(outputs, (tuple, list)):
        return None
    shapes_known = all(isinstance(each, Tensor) and each.ndim in (2, 4) for each in outputs)
    return outputs if shapes_known else None


# ---- data loaders ------------------------------------------------------------------------------


def check_loader(key: str, loader: dict, findings: Findings) -> None:
    """Check the numbers of a data loader.

    Args:
        key: Key of the loader in the config.
        loader: Its config.
        findings: Collects the errors.
    """
    for name, least in (('batch_size', 1), ('num_workers', 0)):
        value = loader.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            findings.error(f'{key}.{name}={value!r}; expected an integer of at least {least}')


def check_batches(
    cfg: Config, sizes: dict[str, int], most: dict[str, int], findings: Findings
) -> None:
    """Check the first and the last batch of an epoch.

    MMEngine ends a training without a step if there is no batch. Batch norm of a single value per
    channel would stop the training at the end of an epoch.

    Args:
        cfg: Complete config.
        sizes: Number of images by key of each data set, as far as known.
        most: Largest possible number where the size is unknown.
        findings: Collects the errors.
    """
    loader = cfg.get('train_dataloader') or {}
    batch, sampler = loader.get('batch_size'), loader.get('sampler') or {}
    ends = isinstance(sampler, dict) and kind_of(sampler) == 'DefaultSampler'
    if not ends or not isinstance(batch, int) or batch < 1:
        return
    processes = world_size(cfg.get('launcher', 'none'))
    of = f'(batch_size={batch}, {processes} process{"es" if processes > 1 else ""})'
    drops = loader.get('drop_last')
    known = {**sizes, **most} if drops else sizes
    total = _length('train_dataloader.dataset', loader['dataset'], known)
    if total is None:
        return
    share = math.ceil(total / processes)
    if drops and share < batch:
        findings.error(
            f'train_dataloader.drop_last=True leaves no batch of {total} images {of}; expected a '
            'smaller batch_size or drop_last=False'
        )
    elif not drops and batch > 1 and share % batch == 1:
        words = f'train_dataloader.drop_last=False leaves a last batch of 1 of {total} images {of}'
        try:
            check_single_image(cfg, words)
        except ValueError as error:
            findings.error(str(error), {'train_dataloader.drop_last': True})


def _length(key: str, dataset: dict, sizes: dict[str, int]) -> int | None:
    """Return the length of a data set, None if it is unknown."""
    kind = kind_of(dataset)
    if kind == 'ConcatDataset':
        lengths = [
            _length(f'{key}.datasets.{index}', part, sizes)
            for index, part in enumerate(dataset['datasets'])
        ]
        return None if None in lengths else sum(filter(None, lengths))
    if kind == 'RepeatDataset':
        length = _length(f'{key}.dataset', dataset['dataset'], sizes)
        return length and length * dataset['times']
    indices, length = dataset.get('indices'), sizes.get(key)
    if indices is None or length is None:
        return length
    return min(length, abs(indices) if isinstance(indices, int) else len(indices))


# ---- schedule ----------------------------------------------------------------------------------


def check_schedule(cfg: Config, findings: Findings) -> None:
    """Check that nothing waits for the end of an epoch that never comes.

    An iteration-based loop ends one epoch, at its last iteration. An epoch-based loop with an
    endless sampler ends none. Loops of other classes are not checked.

    Args:
        cfg: Complete config; not checked without ``train_cfg``.
        findings: Collects the errors.
    """
    settings = cfg.get('train_cfg')
    if not settings:
        return
    _check_arguments(cfg, findings)
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    try:
        kind, scope = optimizer.get('type'), cfg.get('default_scope')
        check_type('optim_wrapper.optimizer', kind, OPTIMIZERS, scope)
    except ValueError as error:
        findings.error(str(error))
    loop = _loop_class(settings, cfg.get('default_scope'))
    if issubclass(loop, EpochBasedTrainLoop):
        _check_sampler(cfg, findings)
    elif issubclass(loop, IterBasedTrainLoop):
        _check_checkpoints(cfg, findings)
    _check_schedulers(cfg, issubclass(loop, IterBasedTrainLoop), findings)


def _loop_class(settings: dict, scope: str | None) -> type:
    if 'type' not in settings:
        loops = {True: EpochBasedTrainLoop, False: IterBasedTrainLoop}
        return loops.get(settings.get('by_epoch'), object)
    kind = settings['type']
    return (registered(LOOPS, kind, scope) if isinstance(kind, str) else kind) or object


def _check_sampler(cfg: Config, findings: Findings) -> None:
    loader = cfg.get('train_dataloader') or {}
    kind = kind_of(loader.get('sampler') or {})
    if kind in _ENDLESS:
        instead = {'train_dataloader.sampler.type': 'DefaultSampler'}
        findings.error(
            f'train_dataloader.sampler.type={kind!r} never ends, so the first '
            f'epoch of train_cfg={_short(cfg.train_cfg)} would not end; expected a sampler that '
            "ends, such as DefaultSampler, or an iteration-based loop: train_cfg=dict(type='Iter"
            "BasedTrainLoop', max_iters=...)",
            instead if kind == 'InfiniteSampler' else None,
        )


def _checkpoint_hooks(cfg: Config) -> Iterator[tuple[str, dict]]:
    """Yield the hooks that save; the default hook of MMEngine saves by epoch.

    Args:
        cfg: Complete config.
    """
    default = (cfg.get('default_hooks') or {}).get('checkpoint', dict(type='CheckpointHook'))
    hooks = {'default_hooks.checkpoint': default}
    for index, hook in enumerate(cfg.get('custom_hooks') or ()):
        hooks[f'custom_hooks.{index}'] = hook
    for key, hook in hooks.items():
        if isinstance(hook, dict) and kind_of(hook) == 'CheckpointHook':
            yield key, hook


def _check_arguments(cfg: Config, findings: Findings) -> None:
    """Check the arguments of checkpoint hooks, which MMEngine reads at the first save."""
    known = {*inspect.signature(CheckpointHook).parameters, 'type', 'priority', '_scope_'}
    for key, hook in _checkpoint_hooks(cfg):
        for name in sorted(hook.keys() - (known - {'kwargs'})):
            near = nearest(name, known, 0.6)
            findings.error(
                f'{key}.{name}={hook[name]!r}: CheckpointHook has no argument {name!r}'
                + (f'; the nearest argument is {near}' if near else '')
            )


def _check_checkpoints(cfg: Config, findings: Findings) -> None:
    for key, hook in _checkpoint_hooks(cfg):
        interval = hook.get('interval', 1 if key.startswith('default') else -1)
        if hook.get('by_epoch', True) and interval > 0:
            every = interval if interval >= _FEW else cfg.train_cfg.get('val_interval', 1000)
            findings.error(
                f'{key}.by_epoch={hook.get("by_epoch", "True (the default)")} with an '
                'iteration-based loop writes no checkpoint before the end of training; expected '
                f'by_epoch=False and an interval in iterations instead of {interval}',
                {f'{key}.type': 'CheckpointHook', f'{key}.by_epoch': False}
                | {f'{key}.interval': every},
            )


def _check_schedulers(cfg: Config, by_iteration: bool, findings: Findings) -> None:
    for key, scheduler in _schedulers('param_scheduler', cfg.get('param_scheduler')):
        by_epoch, converts = scheduler.get('by_epoch', True), 'convert_to_iter_based'
        if not by_epoch and scheduler.get(converts):
            findings.error(
                f'{key}.{converts}=True converts epochs, but by_epoch=False; expected one of them'
            )
        adapts = scheduler.get(converts) or 'Plateau' in kind_of(scheduler)  # steps at validations
        if by_iteration and by_epoch and not adapts:
            findings.error(
                f'{key}.by_epoch={scheduler.get("by_epoch", "True (the default)")} '
                f'({kind_of(scheduler)}) with an iteration-based loop never takes a step, so '
                'its values stay those of the start; expected by_epoch=False, and begin, end, '
                'T_max and milestones in iterations',
                {f'{key}.by_epoch': False},
            )


def _schedulers(key: str, node: Any) -> list[tuple[str, dict]]:
    """List the schedulers of one, several, or named optimizers.

    Args:
        key: Key of the node.
        node: ``param_scheduler`` of a config, or a part of it.

    Returns:
        Key and config of each.
    """
    if isinstance(node, dict) and 'type' in node:
        return [(key, node)]
    if not isinstance(node, (dict, list, tuple)):
        return []  # none, or a scheduler that is built
    parts = node.items() if isinstance(node, dict) else enumerate(node)
    return [found for name, part in parts for found in _schedulers(f'{key}.{name}', part)]


def _short(settings: dict) -> str:
    return f'dict({", ".join(f"{name}={value!r}" for name, value in settings.items())})'


# ---- metrics -----------------------------------------------------------------------------------


def check_metrics(cfg: Config, split: str, findings: Findings) -> None:
    """Check what the metrics of a split compute, which the hosts do after a validation only.

    Args:
        cfg: Complete config.
        split: ``train``, ``val`` or ``test``.
        findings: Collects the errors.
    """
    for key, metric in metrics_of(cfg, split):
        for name in ('items', 'metric_items'):
            if isinstance(metric.get(name), str):
                findings.error(
                    f'{key}.{name}={metric[name]!r} is text; expected a list',
                    {f'{key}.{name}': [metric[name]]},
                )
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
    by_coco_eval = not metric.get('use_mp_eval') and set(_as_list(kinds)) - {'proposal_fast'}
    if isinstance(numbers, (list, tuple)) and len(numbers) < 3 and by_coco_eval:
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
        if kind_of(metric) not in ('Accuracy', 'MultiLabelMetric'):
            continue  # RetrievalRecall counts images
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
    loop = kind_of(cfg.get('val_cfg') or {})
    if loop not in ('None', 'ValLoop') or not _is_plain(cfg.val_evaluator):
        return  # others may rename the scores
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


def _is_plain(evaluator: Any) -> bool:
    """Return whether an evaluator of a config has metrics only, or is MMEngine's own."""
    return 'metrics' not in evaluator or kind_of(evaluator) in ('None', 'Evaluator')


def _monitors(cfg: Config) -> Iterator[tuple[str, Any]]:
    """Yield key and value of each setting that names scores."""
    for key, hook in _checkpoint_hooks(cfg):
        yield f'{key}.save_best', hook.get('save_best')
    for index, hook in enumerate(cfg.get('custom_hooks') or ()):
        if isinstance(hook, dict) and kind_of(hook) == 'EarlyStoppingHook':
            yield f'custom_hooks.{index}.monitor', hook.get('monitor')
    for key, scheduler in _schedulers('param_scheduler', cfg.get('param_scheduler')):
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
