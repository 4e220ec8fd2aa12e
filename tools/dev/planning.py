# SPDX-License-Identifier: Apache-2.0
"""Write the table of docs/planning.md: memory, hours and cost of every config's training.

Everything is computed from the configs and from two measured training steps, ``MEASURED``.
"""

import argparse
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

from mmfocal.analysis.complexity import complexity
from mmfocal.engine import read_config
from mmfocal.engine.machine import dicts_in
from tools.dev.model_zoo.schedule import TRAINING_SETS
from tools.dev.model_zoo.tables import be_quiet
from tools.dev.model_zoo.zoo import find_configs

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'planning.md'
MARKS = ('<!-- begin: planning.py -->', '<!-- end: planning.py -->')
GPUS = (8, 16, 32, 64)
RESIZING = ('Resize', 'RandomResize', 'RandomChoiceResize')
DIVISOR = 32  # detectors pad images to multiples of it
BYTES = 16  # per parameter: fp32 weight, gradient, and AdamW's two moments


class Step(NamedTuple):
    """A measured training step of Focal-T's backbone, forward and backward.

    Attributes:
        config: Config of that backbone.
        shape: Height and width of the images.
        images: Images of the step.
        seconds: Duration.
        peak: Bytes at the peak, with weights and gradients.
    """

    config: str
    shape: tuple[int, int]
    images: int
    seconds: float
    peak: float


class Costs(NamedTuple):
    """Multiply-accumulates of the backbone, of the whole model, and their parameters."""

    backbone: float
    whole: float
    backbone_params: int
    params: int


# One H200 (driver 580.159, torch 2.11.0+cu130), commit ce20759, bf16 autocast, Triton backend,
# eager, median of three.
MEASURED = {
    'small': Step('classification/focal_t_in1k.py', (224, 224), 128, 0.0963, 8.30e9),
    'large': Step('detection/focal_t_maskrcnn_3x.py', (800, 1344), 2, 0.0871, 2.90e9),
}


def costs(cfg: Config, shape: tuple[int, int]) -> Costs:
    """Count the costs of one image.

    Args:
        cfg: Config.
        shape: Height and width.
    """
    model = complexity(cfg, shape)
    rows = {row.name: row for row in model.by_module('default', 1)}
    backbone = rows['backbone']
    return Costs(backbone.flops, model.flops('default'), backbone.params, model.params)


def _limits(step: Mapping) -> list[tuple[int, int]]:
    """Return the scales of a step of a pipeline that resizes; none for other steps."""
    if step.get('type') not in RESIZING:
        return []
    scales = step.get('scales', step.get('scale'))
    return [scales] if isinstance(scales[0], int) else list(scales)


def shape_of(cfg: Config) -> tuple[int, int]:
    """Return the size of a training image; for detectors, the largest scale after padding.

    Args:
        cfg: Config.
    """
    steps = list(dicts_in(cfg.train_dataloader.dataset))
    if cfg.default_scope == 'mmdet':
        limits = [limit for step in steps for limit in _limits(step)]
        height, width = sorted(max(limits, key=math.prod))
        return math.ceil(height / DIVISOR) * DIVISOR, math.ceil(width / DIVISOR) * DIVISOR
    for step in steps:
        if step.get('type') == 'RandomCrop':
            return tuple(step['crop_size'])
        if step.get('type') == 'RandomResizedCrop':
            size = step['scale']
            return (size, size) if isinstance(size, int) else tuple(size)
    raise ValueError(f'{cfg.filename}: the size of training images is unknown')


def images_of(cfg: Config) -> tuple[str, int]:
    """Return the name of the data and the number of images that a training processes.

    Args:
        cfg: Config.
    """
    dataset = cfg.train_dataloader.dataset
    times = dataset.times if dataset.type == 'RepeatDataset' else 1
    name, count = TRAINING_SETS[dataset.get('dataset', dataset).type]
    if 'max_epochs' in cfg.train_cfg:
        epochs = times * cfg.train_cfg.max_epochs
        return f'{name}, {epochs} epochs', epochs * count
    iterations, batch = cfg.train_cfg.max_iters, cfg.auto_scale_lr.base_batch_size
    return f'{name}, {iterations // 1000}k x {batch}', iterations * batch


def rows(efficiency: float, price: float) -> Iterator[str]:
    """Compute the rows of the table.

    Args:
        efficiency: Speed of N GPUs relative to N times one.
        price: Price of a GPU hour.

    Yields:
        One row per config.
    """
    references = {
        name: costs(read_config(ROOT / 'configs' / step.config), step.shape)
        for name, step in MEASURED.items()
    }
    for name in find_configs(ROOT / 'configs'):
        cfg = read_config(ROOT / 'configs' / name)
        dataset = cfg.train_dataloader.dataset
        if dataset.get('dataset', dataset).type not in TRAINING_SETS:
            continue
        if re.search('nano|overfit', name):  # not trained on whole data sets
            continue
        if cfg.model.backbone.type != 'FocalTransformer':
            continue
        kind = 'small' if cfg.default_scope == 'mmpretrain' else 'large'
        step, reference = MEASURED[kind], references[kind]
        own = costs(cfg, shape_of(cfg))
        data, images = images_of(cfg)
        scale = own.whole / reference.backbone
        hours = images * step.seconds / step.images * scale / 3600
        batch = cfg.train_dataloader.batch_size
        activations = (step.peak - 8 * reference.backbone_params) / step.images * scale
        memory = (BYTES * own.params + batch * activations) / 1e9
        is_measured = name == step.config and math.isclose(scale, 1, rel_tol=0.01)
        spread = ' | '.join(f'{hours / (count * efficiency):,.1f}' for count in GPUS)
        yield (
            f'| `{Path(name).stem}` | {data} | {own.params / 1e6:.0f} | {own.whole / 1e9:.1f} | '
            f'{batch} | {memory:.1f} | {hours / efficiency:,.0f} | {spread} | '
            f'{hours / efficiency * price:,.0f} | {"measured" if is_measured else "estimated"} |'
        )


def main() -> None:
    """Replace the table of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--efficiency', type=float, default=0.9, help='speed of N GPUs relative to N times one'
    )
    parser.add_argument('--price', type=float, default=3.0, help='price of one GPU hour')
    args = parser.parse_args()
    be_quiet()
    header = (
        f'| config | data | 10^6 parameters | GMACs per image | images per GPU | GB per GPU | '
        f'GPU hours | {" | ".join(f"hours on {count}" for count in GPUS)} | cost | basis |'
    )
    lines = [header, '|' + '---|' * header.count(' | ') + '---|']
    lines += rows(args.efficiency, args.price)
    block = '\n'.join([MARKS[0], *lines, MARKS[1]])
    pattern = re.compile(f'{MARKS[0]}.*{MARKS[1]}', re.DOTALL)
    PAGE.write_text(pattern.sub(lambda _: block, PAGE.read_text()))


if __name__ == '__main__':
    main()
