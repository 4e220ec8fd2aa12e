# SPDX-License-Identifier: Apache-2.0
"""Unique output files for input images of any names."""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner

from .machine import tell

_WRITABLE = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def output_names(paths: Iterable[str], suffix: str | None = None) -> dict[str, str]:
    """Name output files after input files: by base name, or with folders if base names repeat.

    Args:
        paths: Input files.
        suffix: Suffix of the outputs; None keeps the inputs' own.

    Returns:
        Relative output path for each input path.
    """
    places = {path: path if '://' in path else os.path.abspath(path) for path in paths}
    files = list(dict.fromkeys(places.values()))
    parts = [place.replace('://', '/').lstrip('/') for place in files]
    common = os.path.commonpath([os.path.dirname(part) for part in parts]) if parts else ''
    below = [os.path.relpath(part, common) if common else part for part in parts]
    candidates = (
        [_with_suffix(os.path.basename(part), suffix) for part in parts],
        [_with_suffix(part, suffix) for part in below],
        [_with_suffix(part, None) + (suffix or '') for part in below],
        [f'{i:06d}_{os.path.basename(part)}{suffix or ".png"}' for i, part in enumerate(parts)],
    )
    # some file systems ignore case
    names = next(each for each in candidates if len({name.lower() for name in each}) == len(each))
    by_file = dict(zip(files, names, strict=True))
    return {path: by_file[place] for path, place in places.items()}


def _with_suffix(name: str, suffix: str | None) -> str:
    stem, own = os.path.splitext(name)
    if suffix is not None:
        return stem + suffix
    return name if own.lower() in _WRITABLE else f'{name}.png'


def image_paths(dataset: BaseDataset) -> list[str]:
    """List the images of a data set of any host library, in order.

    Args:
        dataset: Built data set; the list is empty if its images are unknown.
    """
    try:
        return [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]
    except (AttributeError, KeyError, TypeError):
        return []


def tell_replacement(cfg: Config, path: str | None) -> None:
    """Print a line if an output exists already.

    Args:
        cfg: Config with ``launcher``.
        path: File or folder to be written.
    """
    if path and os.path.isdir(path) and os.listdir(path):
        tell(cfg, f'{path} is not empty: files of the same name are replaced')
    elif path and os.path.isfile(path):
        tell(cfg, f'{path} exists and is replaced')


class DrawPredictions(Hook):
    """Draw each test image with its predictions into a separate file.

    The hosts' hooks name files by base name, so that images of several folders overwrite each
    other.

    Args:
        folder: Output folder.
        **options: Further arguments of the host's visualizer.
    """

    def __init__(self, folder: str, **options: Any) -> None:
        self.folder = folder
        self.options = options

    def before_test(self, runner: Runner) -> None:
        """Choose the names.

        Args:
            runner: The runner.
        """
        self.names = output_names(image_paths(runner.test_dataloader.dataset))
        self.index = 0

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[Any]
    ) -> None:
        """Draw one batch.

        Args:
            runner: The runner.
            batch_idx: Not used.
            data_batch: Not used.
            outputs: Predictions of mmdet, mmseg or mmpretrain.
        """
        import mmcv

        visualizer = runner.visualizer
        for sample in outputs:
            path = sample.img_path
            name = self.names.get(path) or _with_suffix(os.path.basename(path), None)
            image = mmcv.imfrombytes(get(path), channel_order='rgb')
            self.index += 1
            options = dict(self.options, out_file=os.path.join(self.folder, name), step=self.index)
            if hasattr(visualizer, 'visualize_cls'):
                visualizer.visualize_cls(image, sample, name=name, **options)
            else:
                visualizer.add_datasample(name, image, data_sample=sample, **options)


class SeparateLabelMaps(Hook):
    """Make mmseg's ``IoUMetric`` write one label map per image, in subfolders if needed."""

    def before_test(self, runner: Runner) -> None:
        """Choose the names.

        Args:
            runner: The runner.
        """
        metrics = [m for m in runner.test_evaluator.metrics if getattr(m, 'output_dir', None)]
        if not metrics:
            return
        names = output_names(image_paths(runner.test_dataloader.dataset), '.png')
        for metric in metrics:
            metric.process = partial(_process_apart, metric, metric.process, names)


def _process_apart(
    metric: Any,
    process: Callable,
    names: dict[str, str],
    data_batch: Any,
    data_samples: Sequence[dict],
) -> None:
    root = metric.output_dir
    for sample in data_samples:
        path = os.path.join(root, names.get(sample['img_path'], sample['img_path']))
        metric.output_dir = os.path.dirname(path)
        os.makedirs(metric.output_dir, exist_ok=True)
        process(data_batch, [dict(sample, img_path=path)])
    metric.output_dir = root
