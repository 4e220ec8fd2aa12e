# SPDX-License-Identifier: Apache-2.0
"""What ``tools/test.py`` adds to a config: pictures, several views, predictions, submissions."""

import os
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric, DumpResults

_TTA_MODELS = (
    "; boxes: type='DetTTAModel', with masks: type='MaskTTAModel' of mmfocal.detection, "
    'see docs/multi_scale.md'
)
_SUBMISSION_KEYS = dict(CocoMetric='outfile_prefix', IoUMetric='output_dir')


class DumpSegResults(DumpResults):
    """Dump predicted label maps without logits, which would take 200 MB per ADE20K image."""

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep one batch's predictions.

        Args:
            data_batch: Not used.
            data_samples: Predictions of mmseg as dicts.
        """
        bulky = ('seg_logits', 'gt_sem_seg')
        kept = [{k: v for k, v in sample.items() if k not in bulky} for sample in data_samples]
        super().process(data_batch, kept)


def dump_metric(scope: str, path: str) -> BaseMetric:
    """Make the metric that writes predictions to a pickle file.

    Args:
        scope: ``mmdet`` (masks as RLE), ``mmseg`` (label maps) or ``mmpretrain``.
        path: File ending in ``.pkl`` or ``.pickle``.

    Returns:
        A metric without a score, to add to the evaluator.

    Raises:
        ValueError: If the name does not end so.
    """
    if not path.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out {path}: expected a file ending in .pkl or .pickle')
    if scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        return DumpDetResults(path)
    return DumpSegResults(path) if scope == 'mmseg' else DumpResults(path)


def draw_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Switch on the host's visualisation hook.

    Args:
        cfg: Config to change in place.
        show: Whether to open windows; mmseg then writes no files.
        show_dir: Pictures land exactly there.
        wait_time: Seconds that a window stays.

    Raises:
        ValueError: If the config has no visualisation hook.
    """
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ValueError('default_hooks.visualization is missing, so nothing can draw predictions')
    hook.update(show=show, wait_time=wait_time)
    target = show_dir and os.path.abspath(show_dir)
    if cfg.default_scope == 'mmpretrain':
        hook.update(enable=True, interval=1, out_dir=target)
    elif cfg.default_scope == 'mmdet':
        hook.update(draw=True, test_out_dir=target)
    else:
        hook.update(draw=True)
        if target:
            cfg.visualizer.vis_backends = [dict(type='LocalVisBackend', img_save_dir=target)]


def use_tta(cfg: Config) -> None:
    """Wrap the model for test-time augmentation, in place.

    Args:
        cfg: Config with ``tta_model`` and ``tta_pipeline``.

    Raises:
        ValueError: If one of them is missing, if mmpretrain is to draw the views, or if the test
            set wraps others.
    """
    hook = cfg.get('default_hooks', {}).get('visualization') or {}
    if cfg.default_scope == 'mmpretrain' and hook.get('enable'):
        raise ValueError('--tta: mmpretrain draws single views only, omit --show and --show-dir')
    for key in ('tta_model', 'tta_pipeline'):
        if key not in cfg:
            hint = _TTA_MODELS if cfg.default_scope == 'mmdet' else ''
            raise ValueError(f'--tta needs {key!r} in the config, which has none{hint}')
    _single_test_set(cfg, '--tta').pipeline = cfg.tta_pipeline
    cfg.model = dict(**cfg.tta_model, module=cfg.model)


def write_submission(cfg: Config, target: str) -> None:
    """Write what test servers take instead of a score, in place; needs no annotations.

    Args:
        cfg: Config whose ``test_evaluator`` holds metrics of COCO or label maps.
        target: Beginning of ``.bbox.json`` and ``.segm.json`` for COCO, folder for label maps.

    Raises:
        ValueError: If a metric cannot do so, or if the test set wraps others.
    """
    metrics = cfg.test_evaluator
    for metric in metrics if isinstance(metrics, (list, tuple)) else [metrics]:
        kind = _kind(metric)
        if kind not in _SUBMISSION_KEYS:
            known = ' and '.join(_SUBMISSION_KEYS)
            raise ValueError(f'--format-only: {kind} writes no files, only {known} do')
        metric.update({'format_only': True, _SUBMISSION_KEYS[kind]: target})
    dataset = _single_test_set(cfg, '--format-only')
    dataset.pipeline = without_annotations(dataset.pipeline)
    dataset.get('data_prefix', {}).pop('seg_map_path', None)


def _single_test_set(cfg: Config, option: str) -> ConfigDict:
    dataset = cfg.test_dataloader.dataset
    if 'pipeline' not in dataset:
        raise ValueError(
            f'{option} needs a data set with a pipeline, got '
            f'test_dataloader.dataset.type={dataset.type!r}'
        )
    return dataset


def without_annotations(steps: Sequence) -> list:
    """Leave out LoadAnnotations, which fails where a test set has none.

    Args:
        steps: Pipeline, maybe with TestTimeAug in it.

    Returns:
        The other steps.
    """
    kept = []
    for step in steps:
        if isinstance(step, (list, tuple)):  # alternatives in TestTimeAug
            step = without_annotations(step)
        elif 'transforms' in step:
            step = dict(step, transforms=without_annotations(step['transforms']))
        elif _kind(step) == 'LoadAnnotations':
            continue
        if step:
            kept.append(step)
    return kept


def _kind(part: dict) -> str:
    return part['type'].split('.')[-1]
