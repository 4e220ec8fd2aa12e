# SPDX-License-Identifier: Apache-2.0
"""Size of the images that a config tests on."""

from collections.abc import Sequence

from mmengine.config import Config

from .conventions import Shape

# Published tables count detectors at 800x1280, because COCO's images do not reach 800x1333.
_COUNTED = {(800, 1333): (800, 1280)}


def _pair(size: int | Sequence[int]) -> tuple[int, int] | None:
    """Return width and height; None where a config gives several sizes."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    return sides if len(sides) == 2 and all(isinstance(side, int) for side in sides) else None


def _resized(step: dict) -> Shape | None:
    """Return the size that a transform makes, or None."""
    kind = step.get('type')
    name = kind.rpartition('.')[2] if isinstance(kind, str) else ''
    if name in ('Resize', 'ResizeEdge', 'FixShapeResize'):
        size = step.get('scale')
        if size is None and 'width' in step:
            size = (step['width'], step['height'])
    elif name.endswith('CenterCrop'):
        size = step.get('crop_size')
    else:
        return None
    sides = _pair(size) if size is not None else None
    if sides is None or min(sides) <= 0:
        return None
    # keep_ratio: limits of the longer and the shorter side; images are mostly landscape
    width, height = (max(sides), min(sides)) if step.get('keep_ratio') else sides
    return height, width


def _pipeline(cfg: Config) -> Sequence[dict]:
    """Return the transforms of the test data, or of the validation data."""
    for split in ('test', 'val'):
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
        while 'dataset' in dataset or 'datasets' in dataset:  # RepeatDataset, ConcatDataset
            dataset = dataset.get('dataset') or dataset['datasets'][0]
        if dataset.get('pipeline'):
            return dataset['pipeline']
    return cfg.get('test_pipeline') or ()


def test_shape(cfg: Config) -> Shape | None:
    """Return the size of the images that a config tests on.

    Args:
        cfg: Config of mmdet, mmseg or mmpretrain.

    Returns:
        Height and width after the last resizing or cropping of the test pipeline; 800x1280 for
        COCO's limit of 1333x800, as published tables count. None if the pipeline sets no size.
    """
    shapes = [shape for step in _pipeline(cfg) if (shape := _resized(step))]
    return _COUNTED.get(shapes[-1], shapes[-1]) if shapes else None
