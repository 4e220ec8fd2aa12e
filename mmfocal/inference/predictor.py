# SPDX-License-Identifier: Apache-2.0
"""Common interface of the host libraries' inferencers, with safe loading of checkpoints."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import supervision as sv
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel
from mmengine.registry import DATASETS, DefaultScope

from mmfocal.engine.config_files import read_config
from mmfocal.engine.evaluate import use_tta, without_annotations
from mmfocal.engine.load import classes_of, other_classes
from mmfocal.engine.startup import explained
from mmfocal.models.pretrained import (
    convert_upstream,
    load_whole_model,
    read_checkpoint,
    tensors_of,
)

from .prediction import Boxes, ClassScores, LabelMap, Prediction
from .run_folder import find_run
from .sources import read_image


class Predictor:
    """Predictor for single images.

    Args:
        config_or_run: Folder of a run, config file, or name of a shipped config. A config also
            needs a checkpoint.
        checkpoint: Checkpoint file; optional for a run, see ``find_run``.
        device: Device such as ``'cuda:0'`` or ``'cpu'``; by default a GPU if available.
        score_thr: Minimum score of boxes.
        tta: Test-time augmentation by the config's ``tta_pipeline``.
        allow_pickle: Unpickle objects of any class in the checkpoint: trusted files only.

    Attributes:
        classes: Names of the classes.
        config, checkpoint: Paths of the files in use.

    Raises:
        FileNotFoundError: If config or checkpoint is missing.
        ValueError: If the checkpoint is damaged or of another model, if there is no such device,
            or if ``score_thr`` is not between 0 and 1.
    """

    def __init__(
        self,
        config_or_run: str | Path,
        checkpoint: str | Path | None = None,
        *,
        device: str | None = None,
        score_thr: float = 0.3,
        tta: bool = False,
        allow_pickle: bool = False,
    ) -> None:
        if not 0 <= score_thr <= 1:
            raise ValueError(f'score_thr={score_thr}; expected 0 to 1')
        device = _usable_device(device)
        self.config, self.checkpoint = find_run(config_or_run, checkpoint)
        self.score_thr = score_thr
        cfg = read_config(self.config)
        content = read_checkpoint(self.checkpoint, allow_pickle)
        self.scope = cfg.default_scope
        _prepare(cfg, tta)
        self.classes = _classes(cfg, content, self.checkpoint)
        with explained(cfg):
            self._inferencer = _build_inferencer(cfg, device)
        model = self._inferencer.model
        model = model.module if isinstance(model, BaseTTAModel) else model
        load_whole_model(
            model, convert_upstream(tensors_of(content, self.checkpoint)), self.checkpoint
        )

    def __call__(self, image: str | Path | np.ndarray) -> Prediction:
        """Predict on an image.

        Args:
            image: Path, URL, or BGR image ``(H, W, 3)``, uint8.

        Returns:
            ``Boxes``, ``LabelMap`` or ``ClassScores``.
        """
        if not isinstance(image, np.ndarray):
            image = read_image(image)
        inferencer = self._inferencer
        with DefaultScope.overwrite_default_scope(self.scope):
            (batch,) = inferencer.preprocess([image], batch_size=1)
            if self.scope == 'mmdet':  # mmdet's preprocess keeps the images for drawing
                _, batch = batch
            (sample,) = inferencer.forward(batch)
        return self._interpret(image, sample.cpu())

    def _interpret(self, image: np.ndarray, sample: Any) -> Prediction:
        if self.scope == 'mmpretrain':
            return ClassScores(image, self.classes, sample.pred_score.numpy())
        if self.scope == 'mmseg':
            label_map = sample.pred_sem_seg.data[0].numpy()
            return LabelMap(image, self.classes, label_map)
        found = sv.Detections.from_mmdetection(sample)
        if found.mask is not None:
            found.mask = found.mask.astype(bool)
        found = found[found.confidence >= self.score_thr]
        return Boxes(image, self.classes, found[np.argsort(-found.confidence, kind='stable')])


def _prepare(cfg: Config, tta: bool) -> None:
    """Reduce a config to the needs of inferencers: one data set without annotations, no logs."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset or 'datasets' in dataset:  # RepeatDataset, ConcatDataset and so on
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    cfg.test_dataloader.dataset = dataset
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.pop('data_preprocessor'))
    if tta:
        use_tta(cfg)
    cfg.test_dataloader.dataset.pipeline = without_annotations(
        cfg.test_dataloader.dataset.pipeline
    )
    if cfg.get('visualizer'):
        cfg.visualizer.vis_backends = None


def _classes(cfg: Config, checkpoint: dict[str, Any], path: str) -> Sequence[str]:
    """Return the class names in the checkpoint, or those of the config; tell if they differ."""
    names = classes_of(checkpoint)
    if not names:
        return _classes_of_config(cfg) or _Numbered()
    with suppress(Exception):  # the config's data set is not needed
        if line := other_classes(checkpoint, _classes_of_config(cfg), path):
            print_log(f'WARNING: {line}')
    return names


def _classes_of_config(cfg: Config) -> tuple[str, ...]:
    dataset = {**cfg.test_dataloader.dataset, 'pipeline': [], 'lazy_init': True}
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return tuple(DATASETS.build(dataset).metainfo.get('classes') or ())


class _Numbered(Sequence):
    """Class names for models that have none."""

    def __getitem__(self, index: int) -> str:
        return f'class {index}'

    def __len__(self) -> int:
        return 0


def _usable_device(device: str | None) -> str:
    """Return the device, by default a GPU if available; ValueError if it cannot be used."""
    if device is None:
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        reason = str(error).strip().split('\n')[0]
        raise ValueError(f'device {device!r} cannot be used: {reason}') from error
    return device


def _build_inferencer(cfg: Config, device: str) -> Any:
    """Build the host's inferencer silently, without weights, which are loaded afterwards."""
    with warnings.catch_warnings(), DefaultScope.overwrite_default_scope(cfg.default_scope):
        warnings.simplefilter('ignore')
        if cfg.default_scope == 'mmdet':
            from mmdet.apis import DetInferencer

            return DetInferencer(cfg, device=device, show_progress=False)
        if cfg.default_scope == 'mmseg':
            from mmseg.apis import MMSegInferencer

            return MMSegInferencer(cfg, device=device, show_progress=False)
        if cfg.default_scope == 'mmpretrain':
            from mmpretrain import ImageClassificationInferencer

            return ImageClassificationInferencer(cfg, pretrained=False, device=device)
    raise ValueError(
        f"default_scope={cfg.default_scope!r}; expected 'mmdet', 'mmseg' or 'mmpretrain'"
    )
