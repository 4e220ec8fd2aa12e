# SPDX-License-Identifier: Apache-2.0
"""Unique output files for input images of any names."""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.dist import get_rank, get_world_size
from mmengine.evaluator import Evaluator
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmfocal.existing_outputs import check_not_inputs, replacement

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


def image_paths(dataset: BaseDataset, key: str = 'img_path') -> list[str]:
    """List the files of a data set of any host library, in order.

    Args:
        dataset: Built data set; the list is empty if its files are unknown.
        key: ``'img_path'`` or ``'seg_map_path'``.
    """
    try:
        return [dataset.get_data_info(index)[key] for index in range(len(dataset))]
    except (AttributeError, KeyError, TypeError):
        return []


class OutputNames:
    """Unique names of a test set's outputs, in the order of the samples.

    Args:
        dataset: Built data set.
        folder: Output folder.
        suffix: Suffix of the outputs; None keeps the images' own.

    Raises:
        FileExistsError: If an output would replace an image or a label map of the data set.
    """

    def __init__(self, dataset: BaseDataset, folder: str, suffix: str | None = None) -> None:
        paths = image_paths(dataset)
        self.by_path = output_names(paths, suffix)
        self.suffix = suffix
        self.count = 0
        outputs = [os.path.join(folder, name) for name in self.by_path.values()]
        check_not_inputs(outputs, paths + image_paths(dataset, 'seg_map_path'))

    def next(self, path: str | None) -> str:
        """Name the output of the next sample of this process.

        Args:
            path: Its image; None if it has no file, as those of CIFAR.

        Returns:
            Path relative to the output folder. It has the position in the data set if the data
            set does not know the image.
        """
        index = self.count * get_world_size() + get_rank()  # MMEngine's sampler deals them out
        self.count += 1
        if path in self.by_path:
            return self.by_path[path]
        base = os.path.basename(path or '')
        return _with_suffix(f'{index:06d}_{base}' if base else f'{index:06d}', self.suffix)


def tell_replacement(cfg: Config, path: str | None) -> None:
    """Print a line if an output exists already.

    Args:
        cfg: Config with ``launcher``.
        path: File or folder to be written.
    """
    line = replacement(path) if path else None
    if line:
        tell(cfg, line)


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
        self.names = OutputNames(runner.test_dataloader.dataset, self.folder)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[Any]
    ) -> None:
        """Draw one batch.

        Args:
            runner: The runner.
            batch_idx: Not used.
            data_batch: Images without a file are drawn as the pipeline made them.
            outputs: Predictions of mmdet, mmseg or mmpretrain.
        """
        import mmcv

        visualizer = runner.visualizer
        for position, sample in enumerate(outputs):
            path = sample.get('img_path')
            name = self.names.next(path)
            if path:
                image = mmcv.imfrombytes(get(path), channel_order='rgb')
            else:
                image = _image_of(data_batch['inputs'], position)
            out_file = os.path.join(self.folder, name)
            options = dict(self.options, out_file=out_file, step=self.names.count)
            if hasattr(visualizer, 'visualize_cls'):
                visualizer.visualize_cls(image, sample, name=name, **options)
            else:
                visualizer.add_datasample(name, image, data_sample=sample, **options)


def _image_of(inputs: Any, position: int) -> np.ndarray:
    """Return an image of a batch: (H, W, 3) uint8; of test-time augmentation its first view."""
    if isinstance(inputs[0], (list, tuple)) or inputs[0].ndim == 4:
        inputs = inputs[0]
    image = inputs[position].permute(1, 2, 0).cpu().numpy().astype(np.uint8)
    return np.broadcast_to(image, (*image.shape[:2], 3)).copy()


class SeparateLabelMaps(Hook):
    """Make mmseg's ``IoUMetric`` write one label map per image, in subfolders if needed."""

    def before_train(self, runner: Runner) -> None:
        """Choose the names for validation.

        Args:
            runner: The runner.
        """
        if runner.val_loop is not None:
            self._separate(runner.val_evaluator, runner.val_dataloader)

    def before_test(self, runner: Runner) -> None:
        """Choose the names.

        Args:
            runner: The runner.
        """
        self._separate(runner.test_evaluator, runner.test_dataloader)

    def _separate(self, evaluator: Evaluator, loader: DataLoader) -> None:
        for metric in evaluator.metrics:
            if getattr(metric, 'output_dir', None):
                names = OutputNames(loader.dataset, metric.output_dir, '.png')
                metric.process = partial(_process_apart, metric, metric.process, names)


def _process_apart(
    metric: Any,
    process: Callable,
    names: OutputNames,
    data_batch: Any,
    data_samples: Sequence[dict],
) -> None:
    root = metric.output_dir
    for sample in data_samples:
        path = os.path.join(root, names.next(sample.get('img_path')))
        metric.output_dir = os.path.dirname(path)
        os.makedirs(metric.output_dir, exist_ok=True)
        process(data_batch, [dict(sample, img_path=path)])
    metric.output_dir = root
