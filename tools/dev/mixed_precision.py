# SPDX-License-Identifier: Apache-2.0
"""Train a small detector in float32, bfloat16 and float16 on a CPU and compare losses and scores.

The backbone runs under autocast. Its convolutions and the rest of the model stay in float32, as
their operators are slow or missing in lower precision on CPUs. All runs see the same images
in the same order.
"""

import argparse
import json
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn

from mmfocal.engine import check_inputs
from mmfocal.engine.resume import check_work_dir

DTYPES = ('float32', 'bfloat16', 'float16')


@OPTIM_WRAPPERS.register_module()
class ScaledOptimWrapper(OptimWrapper):
    """Scale the loss for float16. MMEngine's ``AmpOptimWrapper`` does not run on CPUs.

    Args:
        scaled: Whether the loss is scaled.
        kwargs: Of ``OptimWrapper``.
    """

    def __init__(self, scaled: bool, **kwargs) -> None:
        super().__init__(**kwargs)
        self.scaler = torch.amp.GradScaler('cpu', enabled=scaled)

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Compute gradients of the scaled loss."""
        self.scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs) -> None:
        """Update the parameters, unless a gradient is not finite."""
        self.scaler.unscale_(self.optimizer)
        if self.clip_grad_kwargs:
            self._clip_grad()
        self.scaler.step(self.optimizer, **kwargs)
        self.scaler.update()


def lower_precision(backbone: nn.Module, dtype: torch.dtype) -> None:
    """Run a backbone under autocast, in training and validation.

    Args:
        backbone: Changed in place. Its convolutions stay in float32: on CPUs, PyTorch has no fast
            gradient for them in float16.
        dtype: ``torch.bfloat16`` or ``torch.float16``.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            _cast(module, torch.float32)
    _cast(backbone, dtype)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    forward, enabled = module.forward, dtype != torch.float32

    def cast_forward(x: Tensor) -> Any:
        with torch.autocast('cpu', dtype if enabled else None, enabled=enabled):
            out = forward(x.float())
        return out if isinstance(out, Tensor) else tuple(each.float() for each in out)

    module.forward = cast_forward


def train(args: argparse.Namespace, dtype: str) -> Path:
    """Train in one precision.

    Args:
        args: Of the command line.
        dtype: One of ``DTYPES``.

    Returns:
        File with a JSON line per logged iteration and validation.
    """
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    cfg.optim_wrapper.update(type='ScaledOptimWrapper', scaled=dtype == 'float16')
    cfg.work_dir = str(args.work_dir / dtype)
    check_work_dir(cfg)
    check_inputs(cfg)
    runner = Runner.from_cfg(cfg)
    if dtype != 'float32':
        lower_precision(runner.model.backbone, getattr(torch, dtype))
    runner.train()
    return Path(runner.log_dir) / 'vis_data' / 'scalars.json'


def read_log(path: Path) -> tuple[list[float], dict[str, float]]:
    """Read a log.

    Args:
        path: Returned by ``train``.

    Returns:
        The losses, and the scores of the last validation.
    """
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    losses = [line['loss'] for line in lines if 'loss' in line]
    scores = [line for line in lines if 'loss' not in line][-1]
    names = [name for name in scores if name.endswith(('mAP', 'mIoU', 'top1'))]
    return losses, {name: scores[name] for name in names}


def main() -> None:
    """Train in all precisions and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--config', default='configs/quickstart/focal_nano_maskrcnn.py')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/mixed_precision'))
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=DTYPES)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='see tools/train.py')
    args = parser.parse_args()
    for dtype in args.dtypes:
        # a process each, since MMEngine's logger and visualizer are global
        with ProcessPoolExecutor(1, get_context('spawn')) as pool:
            losses, scores = read_log(pool.submit(train, args, dtype).result())
        if not all(map(math.isfinite, losses)):
            raise SystemExit(f'{dtype}: a loss is not finite')
        quarter = len(losses) // 4
        means = [sum(losses[i : i + quarter]) / quarter for i in range(0, 4 * quarter, quarter)]
        numbers = [*(f'{mean:.3f}' for mean in means), *(f'{v:.3f}' for v in scores.values())]
        print(f'| {dtype} | {" | ".join(numbers)} |  ({", ".join(scores)})', flush=True)


if __name__ == '__main__':
    main()
