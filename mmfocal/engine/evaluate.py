# SPDX-License-Identifier: Apache-2.0
"""Options of ``tools/test.py``: drawing, test-time augmentation, predictions, submissions."""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric, DumpResults
from mmengine.fileio import load

from mmfocal.errors import InputError
from mmfocal.existing_outputs import check_outputs

from .checks import leaf_datasets
from .checks.settings import loads_annotations
from .config_shape import metrics_of
from .machine import kind_of, tell
from .outputs import DrawPredictions, tell_replacement

_TTA_MODELS = (
    "; use type='DetTTAModel' for boxes or type='MaskTTAModel' of mmfocal.detection for masks, "
    'see docs/multi_scale.md'
)
_SUBMISSION_KEYS = dict(CocoMetric='outfile_prefix', IoUMetric='output_dir')


class DumpSegResults(DumpResults):
    """Dump predicted label maps without logits, which take 200 MB per ADE20K image."""

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Store the predictions of one batch.

        Args:
            data_batch: Not used.
            data_samples: Predictions of mmseg as dicts.
        """
        bulky = ('seg_logits', 'gt_sem_seg')
        kept = [{k: v for k, v in sample.items() if k not in bulky} for sample in data_samples]
        super().process(data_batch, kept)


def dump_metric(scope: str, path: str) -> BaseMetric:
    """Return the metric that writes predictions to a pickle file.

    Args:
        scope: ``mmdet`` (masks as RLE), ``mmseg`` (label maps) or ``mmpretrain``.
        path: File ending in ``.pkl`` or ``.pickle``.

    Returns:
        A metric without a score, to add to the evaluator.

    Raises:
        ValueError: If the file has another suffix.
    """
    if not path.endswith(('.pkl', '.pickle')):
        raise InputError(f'--out {path}: expected a file ending in .pkl or .pickle')
    if scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        return DumpDetResults(path)
    return DumpSegResults(path) if scope == 'mmseg' else DumpResults(path)


def draw_predictions(
    cfg: Config, show: bool, show_dir: str | None, wait_time: float
) -> DrawPredictions | None:
    """Set up drawing: the host's hook opens windows, ``DrawPredictions`` writes files.

    Args:
        cfg: Config to change in place.
        show: Whether to open windows.
        show_dir: Folder of the images.
        wait_time: Seconds until a window closes.

    Returns:
        A hook to register if files are to be written.

    Raises:
        ValueError: If windows are to be opened and the config has no visualization hook.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if show_dir:
        tell_replacement(cfg, show_dir)
        return DrawPredictions(
            os.path.abspath(show_dir), show=show, wait_time=wait_time, **_draw_options(cfg, hook)
        )
    if hook is None:
        raise InputError('--show needs default_hooks.visualization in the config')
    hook.update(show=show, wait_time=wait_time)
    if cfg.default_scope == 'mmpretrain':
        hook.update(enable=True, interval=1)
    else:
        hook.update(draw=True)
    return None


def warn_of_base_names(cfg: Config) -> None:
    """Print a line if the config's own visualization hook writes images by their base names.

    Args:
        cfg: Config without ``--show-dir``.
    """
    hook = cfg.get('default_hooks', {}).get('visualization') or {}
    if hook.get('enable') or hook.get('test_out_dir'):
        tell(
            cfg,
            'WARNING: default_hooks.visualization names files by the base names of the images, so '
            'that equal ones of several folders are replaced; --show-dir FOLDER keeps all',
        )


def _draw_options(cfg: Config, hook: dict | None) -> dict[str, Any]:
    """Return the visualizer options of the config's hook."""
    hook = hook or {}
    if cfg.default_scope == 'mmdet':
        return dict(pred_score_thr=hook.get('score_thr', 0.3))
    if cfg.default_scope == 'mmseg':
        return {}
    known = (
        'classes',
        'draw_gt',
        'draw_pred',
        'draw_score',
        'resize',
        'rescale_factor',
        'text_cfg',
    )
    return {name: value for name, value in hook.items() if name in known}


def nothing_to_score(cfg: Config) -> str | None:
    """Return why a test set has no annotations for evaluation.

    Args:
        cfg: Config with ``test_dataloader`` and ``test_evaluator``.

    Returns:
        The reason; None if there are annotations, or if files for a test server are written.
    """
    key, dataset = next(
        leaf_datasets('test_dataloader.dataset', cfg.test_dataloader.dataset), (None, {})
    )
    for _, metric in metrics_of(cfg, 'test'):
        if metric.get('format_only'):
            continue
        kind, root = kind_of(metric), dataset.get('data_root') or ''
        if kind == 'CocoMetric':
            path = metric.get('ann_file') or os.path.join(root, dataset.get('ann_file', ''))
            if os.path.isfile(path) and _has_no_annotations(path):
                return f'nothing to score: {path} has no annotations'
        if kind == 'IoUMetric':
            folder = (dataset.get('data_prefix') or {}).get('seg_map_path')
            path = folder and os.path.join(root, folder)
            if not path:
                return f'nothing to score: {key}.data_prefix has no seg_map_path'
            if '://' not in path and not os.path.isdir(path):
                return f'nothing to score: there are no label maps in {path}'
            if not loads_annotations(dataset):
                return f'nothing to score: {key}.pipeline has no LoadAnnotations'
        is_unlabeled = not dataset.get('with_label', True) or dataset.get('split') == 'test'
        if cfg.default_scope == 'mmpretrain' and is_unlabeled:
            return f'nothing to score: {key} has no labels'
    return None


def _has_no_annotations(path: str) -> bool:
    """Return whether a COCO file has none; the check of the inputs reports a damaged file."""
    with suppress(ValueError):
        content = load(path, file_format='json')
        return isinstance(content, dict) and not content.get('annotations')
    return False


def score_nothing(cfg: Config, reason: str, writes: bool) -> None:
    """Change a config in place to predict without evaluation.

    Args:
        cfg: Config whose test set has no annotations.
        reason: From ``nothing_to_score``.
        writes: Whether predictions are written or shown.

    Raises:
        InputError: If predictions are neither written nor shown.
    """
    if not writes:
        raise InputError(
            f'{reason}. To write predictions: --out FILE.pkl, --show-dir FOLDER or --format-only '
            'TARGET'
        )
    tell(cfg, f'{reason[0].upper()}{reason[1:]}')
    cfg.test_evaluator = []
    for _, dataset in leaf_datasets('', cfg.test_dataloader.dataset):
        dataset.pipeline = without_annotations(dataset.pipeline)
        if isinstance(dataset.get('data_prefix'), dict):
            dataset.data_prefix.pop('seg_map_path', None)


def use_tta(cfg: Config) -> None:
    """Wrap the model for test-time augmentation, in place.

    Args:
        cfg: Config with ``tta_model`` and ``tta_pipeline``.

    Raises:
        ValueError: If one of them is missing, if mmpretrain is to show the views in windows, or if
            the test set wraps other data sets.
    """
    hook = cfg.get('default_hooks', {}).get('visualization') or {}
    if cfg.default_scope == 'mmpretrain' and hook.get('enable'):
        raise InputError('--tta --show: mmpretrain cannot show merged views; use --show-dir')
    for key in ('tta_model', 'tta_pipeline'):
        if key not in cfg:
            hint = _TTA_MODELS if cfg.default_scope == 'mmdet' else ''
            raise InputError(f'--tta needs {key!r}, which the config does not have{hint}')
    _single_test_set(cfg, '--tta').pipeline = cfg.tta_pipeline
    cfg.model = dict(**cfg.tta_model, module=cfg.model)


def write_submission(cfg: Config, target: str, overwrite: bool = False) -> None:
    """Change a config in place to write files for test servers; annotations are not needed.

    Args:
        cfg: Config whose ``test_evaluator`` holds metrics of COCO or label maps.
        target: Prefix of ``.bbox.json`` and ``.segm.json`` for COCO, folder for label maps.
        overwrite: Whether existing ``.json`` files may be replaced.

    Raises:
        FileExistsError: If such a file exists.
        ValueError: If a metric cannot write files, or if the test set wraps other data sets.
    """
    for _, metric in metrics_of(cfg, 'test'):
        kind = kind_of(metric)
        if kind not in _SUBMISSION_KEYS:
            known = ' and '.join(_SUBMISSION_KEYS)
            raise InputError(f'--format-only: {kind} writes no files, only {known} do')
        metric.update({'format_only': True, _SUBMISSION_KEYS[kind]: target})
        if kind == 'CocoMetric':
            check_outputs(_coco_files(target), overwrite)
        else:
            tell_replacement(cfg, target)
    dataset = _single_test_set(cfg, '--format-only')
    dataset.pipeline = without_annotations(dataset.pipeline)
    dataset.get('data_prefix', {}).pop('seg_map_path', None)


def _coco_files(prefix: str) -> list[str]:
    """Return the files that mmdet's ``CocoMetric`` may write."""
    return [f'{prefix}.{kind}.json' for kind in ('bbox', 'segm', 'proposal')]


def tell_written_by_metrics(cfg: Config, split: str) -> None:
    """Print a line for each existing file or folder that the config's metrics write to.

    Args:
        cfg: Config with ``{split}_evaluator``.
        split: ``val`` or ``test``.
    """
    for _, metric in metrics_of(cfg, split):
        tell_replacement(cfg, metric.get('output_dir'))
        for path in _coco_files(metric.get('outfile_prefix') or ''):
            tell_replacement(cfg, path)


def _single_test_set(cfg: Config, option: str) -> ConfigDict:
    dataset = cfg.test_dataloader.dataset
    if 'pipeline' not in dataset:
        raise InputError(
            f'{option} needs a data set with a pipeline, got '
            f'test_dataloader.dataset.type={dataset.type!r}'
        )
    return dataset


def without_annotations(steps: Sequence) -> list:
    """Remove LoadAnnotations, which fails if a test set has no annotations.

    Args:
        steps: Pipeline, which may contain TestTimeAug.

    Returns:
        The other steps.
    """
    kept = []
    for step in steps:
        if isinstance(step, (list, tuple)):  # alternatives in TestTimeAug
            step = without_annotations(step)
        elif 'transforms' in step:
            step = dict(step, transforms=without_annotations(step['transforms']))
        elif kind_of(step) == 'LoadAnnotations':
            continue
        if step:
            kept.append(step)
    return kept
