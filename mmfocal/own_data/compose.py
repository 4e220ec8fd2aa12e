# SPDX-License-Identifier: Apache-2.0
"""Write a config with the differences from its base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import Config
from yapf.yapflib.yapf_api import FormatCode

from mmfocal.engine.checks.settings import num_classes_of

from .annotations import OwnData, Split
from .schedule import plan

# As OpenMMLab formats configs, but with several arguments on a line.
_STYLE = (
    '{based_on_style: pep8, column_limit: 99, split_before_named_assigns: false, '
    'split_before_expression_after_opening_paren: true}'
)


class Code(str):
    """Python code that is written to the config unchanged."""


def compose(
    base: str,
    cfg: Config,
    data: OwnData,
    *,
    batch: int | None = None,
    gpus: int = 1,
    epochs: int | None = None,
    ignore_zero: bool = False,
    weights: str | None = None,
) -> str:
    """Write a config that trains a shipped model on other data.

    Args:
        base: Base config: the name of a shipped config, or an absolute path.
        cfg: Content of the base.
        data: The data set.
        batch: Images per GPU; by default that of the base.
        gpus: Number of GPUs, for the learning rate.
        epochs: Length of the training; by default that of the base.
        ignore_zero: Label maps only: 0 means no label, and 1 is the first class.
        weights: Checkpoint that the backbone starts from, see ``FocalPretrained``.

    Returns:
        Source of the config.

    Raises:
        ValueError: If the data lacks something that the base needs.
    """
    tasks: dict[str, Callable] = dict(
        mmdet=_detection, mmseg=_segmentation, mmpretrain=_classification
    )
    if cfg.get('default_scope') not in tasks:
        raise ValueError(f'{base}: default_scope={cfg.get("default_scope")!r}')
    _require_plain_data(base, cfg)
    batch = batch or cfg.train_dataloader.batch_size
    lines: dict[str, Any] = dict(
        classes=tuple(data.classes), metainfo=Code('dict(classes=classes)')
    )
    if cfg.default_scope == 'mmseg':
        lines.update(_segmentation(cfg, data, ignore_zero))
    else:
        lines.update(tasks[cfg.default_scope](cfg, data))
    if weights:
        lines['model'] = dict(backbone=_pretrained(base, cfg, weights), **lines['model'])
    lines['train_dataloader'] = dict(batch_size=batch, **lines['train_dataloader'])
    changes = plan(cfg, data.train.count, batch, gpus, epochs)
    checkpoint = changes.setdefault('default_hooks', {}).setdefault('checkpoint', {})
    checkpoint.update(save_best=lines.pop('metric'), rule='greater')
    lines.update(changes)
    lines = _changed(lines, cfg)
    if 'val_evaluator' not in lines:  # the evaluators of the base are used unchanged
        lines.pop('test_evaluator', None)
    header = [f"_base_ = __import__('mmfocal').config({base!r})"]
    if Path(base).is_absolute():
        header = [f'_base_ = {base!r}']
    body = [f'{name} = {to_code(value)}' for name, value in lines.items()]
    text, _ = FormatCode('\n'.join([*header, '', *body]) + '\n', style_config=_STYLE)
    return text


def _changed(settings: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Drop settings that equal those of the base; a dict with ``_delete_`` stays complete."""
    kept = {}
    for key, value in settings.items():
        old = base.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and '_delete_' not in value:
            value = _changed(value, old)
            if not value:
                continue
        elif value == old:
            continue
        kept[key] = value
    return kept


def _require_plain_data(base: str, cfg: Config) -> None:
    """Reject bases whose training needs more than images and annotations."""
    kind = cfg.train_dataloader.dataset.get('type')
    if 'dataset' in cfg.train_dataloader.dataset:
        raise ValueError(f'{base}: its data set is wrapped by {kind}, which is not supported')
    if cfg.get('val_evaluator') is None:
        raise ValueError(f'{base} has no validation, which is not supported')
    if (cfg.model.get('roi_head') or {}).get('semantic_head'):
        raise ValueError(f'{base} also learns from stuff maps; use maskrcnn or cascade')


def _detection(cfg: Config, data: OwnData) -> dict[str, Any]:
    metrics = cfg.val_evaluator.metric
    has_masks = 'segm' in ([metrics] if isinstance(metrics, str) else metrics)
    if has_masks and not data.has_masks:
        raise ValueError(
            f'{data.train.labels} has instances without segmentation, but the base trains a mask '
            'head; use fasterrcnn, retinanet or atss'
        )

    lines: dict[str, Any] = dict(model=_heads(cfg))

    def dataset(split: Split, name: str) -> dict:
        settings: dict[str, Any] = dict(
            metainfo=Code('metainfo'),
            data_root='',
            ann_file=split.labels,
            data_prefix=dict(img=split.images),
        )
        steps = cfg[f'{name}_dataloader'].dataset.pipeline
        if not data.has_masks and any(step.get('with_mask') for step in steps):
            lines[f'{name}_pipeline'] = Code(
                "[dict(step, with_mask=False) if step.get('with_mask') else step "
                f'for step in _base_.{name}_dataloader.dataset.pipeline]'
            )
            settings['pipeline'] = Code(f'{name}_pipeline')
        return settings

    datasets = {name: dataset(getattr(data, name), name) for name in ('train', 'val')}
    return dict(
        **lines,
        train_dataloader=dict(dataset=datasets['train']),
        val_dataloader=dict(dataset=datasets['val']),
        test_dataloader=Code('val_dataloader'),
        val_evaluator=dict(ann_file=data.val.labels),
        test_evaluator=Code('val_evaluator'),
        metric='coco/segm_mAP' if has_masks else 'coco/bbox_mAP',
    )


def _segmentation(cfg: Config, data: OwnData, ignore_zero: bool) -> dict[str, Any]:
    def dataset(split: Split, pipeline: str) -> dict:
        return dict(
            _delete_=True,
            type='BaseSegDataset',
            metainfo=Code('metainfo'),
            reduce_zero_label=ignore_zero,
            data_prefix=dict(img_path=split.images, seg_map_path=split.labels),
            img_suffix=data.image_suffix,
            seg_map_suffix=data.label_suffix,
            pipeline=Code(pipeline),
        )

    lines: dict[str, Any] = dict(model=_heads(cfg))
    # Without an argument, LoadAnnotations follows the data set.
    plain = "dict(type='LoadAnnotations') if step['type'] == 'LoadAnnotations' else step"
    for name, split in dict(train='train', test='val').items():
        steps = f'_base_.{split}_dataloader.dataset.pipeline'
        lines[f'{name}_pipeline'] = Code(f'[{plain} for step in {steps}]')
    if 'tta_pipeline' in cfg:
        views = f"[[{plain} for step in group] for group in view['transforms']]"
        lines['tta_pipeline'] = Code(
            f"[dict(view, transforms={views}) if 'transforms' in view else view "
            'for view in _base_.tta_pipeline]'
        )
    lines.update(
        train_dataloader=dict(dataset=dataset(data.train, 'train_pipeline')),
        val_dataloader=dict(dataset=dataset(data.val, 'test_pipeline')),
        test_dataloader=Code('val_dataloader'),
        metric='mIoU',
    )
    return lines


def _classification(cfg: Config, data: OwnData) -> dict[str, Any]:
    def dataset(split: Split, name: str) -> dict:
        return dict(
            _delete_=True,
            type='CustomDataset',
            metainfo=Code('metainfo'),
            **(dict(ann_file=split.listing) if split.listing else {}),
            data_prefix=split.labels,
            pipeline=Code(f'_base_.{name}_dataloader.dataset.pipeline'),
        )

    topk = tuple(k for k in (1, 5) if k <= len(data.classes))
    model = _heads(cfg)
    if 'topk' in cfg.model.head:
        model['head']['topk'] = topk
    return dict(
        model=model,
        data_preprocessor=Code('dict(num_classes=len(classes))'),
        train_dataloader=dict(dataset=dataset(data.train, 'train')),
        val_dataloader=dict(dataset=dataset(data.val, 'val')),
        test_dataloader=Code('val_dataloader'),
        val_evaluator=dict(topk=topk),
        test_evaluator=Code('val_evaluator'),
        metric='accuracy/top1',
    )


def _pretrained(base: str, cfg: Config, weights: str) -> dict[str, Any]:
    kind = cfg.model.backbone.type
    if kind != 'FocalTransformer':
        raise ValueError(f'{base}: weights are for a FocalTransformer, not for {kind}')
    return dict(init_cfg=dict(type='FocalPretrained', checkpoint=weights))


def _heads(cfg: Config) -> dict[str, Any]:
    """Return the part of the model that contains every ``num_classes``."""
    model: dict[str, Any] = {}
    for key, _ in num_classes_of('model', cfg.model):
        node, (*path, _) = model, key.split('.')[1:]
        for depth, name in enumerate(path):
            if depth + 1 < len(path) and path[depth + 1].isdecimal():  # a list of heads
                heads = '.'.join(['_base_.model', *path[: depth + 1]])
                node[name] = Code(f'[dict(head, num_classes=len(classes)) for head in {heads}]')
                break
            node = node.setdefault(name, {})
        else:
            node['num_classes'] = Code('len(classes)')
    return model


def to_code(value: Any) -> str:
    """Format a value in the style of configs: ``dict(key=value)``.

    Args:
        value: Nested dicts, lists, tuples, plain values and ``Code``.

    Returns:
        Python source.
    """
    if isinstance(value, Code):
        return str(value)
    if isinstance(value, dict):
        return f'dict({", ".join(f"{key}={to_code(part)}" for key, part in value.items())})'
    if isinstance(value, list):
        return f'[{", ".join(map(to_code, value))}]'
    return repr(value)
