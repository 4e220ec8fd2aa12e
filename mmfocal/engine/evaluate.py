# SPDX-License-Identifier: Apache-2.0
"""What ``tools/test.py`` adds to a config: pictures, test-time augmentation, predictions."""

import os
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.evaluator import BaseMetric, DumpResults


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
        ValueError: If one of them is missing, or if mmpretrain is to draw the views.
    """
    hook = cfg.get('default_hooks', {}).get('visualization') or {}
    if cfg.default_scope == 'mmpretrain' and hook.get('enable'):
        raise ValueError('--tta: mmpretrain draws single views only, omit --show and --show-dir')
    for key in ('tta_model', 'tta_pipeline'):
        if key not in cfg:
            # mmdet's DetTTAModel is the only one that it has
            masks = "; mmdet's DetTTAModel merges boxes only, so mask detectors have none"
            hint = masks if cfg.default_scope == 'mmdet' else ''
            raise ValueError(f'--tta needs {key!r} in the config, which has none{hint}')
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
