# SPDX-License-Identifier: Apache-2.0
"""Models and images for figures: models of a config with a checkpoint, normalized inputs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from torch import Tensor, nn

from mmfocal.engine import read_config
from mmfocal.inference import find_run
from mmfocal.models import FocalTransformer
from mmfocal.models.pretrained import (
    FocalPretrained,
    convert_upstream,
    load_whole_model,
    read_checkpoint,
    tensors_of,
)

NONE = 'none'  # in place of a checkpoint: random weights


def read_model_config(config_or_run: str, checkpoint: str | None) -> tuple[Config, str]:
    """Read the config and find the checkpoint of a command line, as prediction does.

    Args:
        config_or_run: Folder of a run, config file, or name of a shipped config.
        checkpoint: File, or ``'none'``; optional for a run, see ``mmfocal.inference.find_run``.

    Returns:
        The config, and the checkpoint or ``'none'``.

    Raises:
        FileNotFoundError: If config or checkpoint is missing.
        ValueError: If a config comes without a checkpoint.
    """
    path, checkpoint = find_run(config_or_run, checkpoint)
    return read_config(path), checkpoint


def checkpoint_and_image(inputs: Sequence[str]) -> tuple[str | None, Path]:
    """Split the arguments ``[CHECKPOINT] IMAGE``.

    Raises:
        ValueError: If there are more.
    """
    if len(inputs) > 2:
        raise ValueError(f'expected [CHECKPOINT] IMAGE, got {" ".join(inputs)}')
    *checkpoint, image = inputs
    return (checkpoint[0] if checkpoint else None), Path(image)


def load_backbone(cfg: Config, checkpoint: str) -> FocalTransformer:
    """Build only the backbone of a config and load it from a checkpoint of any kind.

    Args:
        cfg: A config of any task.
        checkpoint: File for ``FocalPretrained``, or ``'none'`` for random weights.

    Raises:
        ValueError: If the backbone is not a ``FocalTransformer``, or the file does not match.
    """
    settings = dict(cfg.model.backbone)
    if settings.get('type') != 'FocalTransformer':
        raise ValueError(
            f'model.backbone.type={settings.get("type")!r}: expected FocalTransformer'
        )
    backbone = MODELS.build({**settings, 'init_cfg': None})
    if checkpoint != NONE:  # init_weights() would print several lines per parameter
        FocalPretrained(checkpoint)(backbone)
    return backbone.eval()


def load_model(cfg: Config, checkpoint: str) -> nn.Module:
    """Build the whole model of a config and load it strictly.

    Args:
        cfg: A config of any task.
        checkpoint: File of the whole model, or ``'none'`` for random weights.

    Raises:
        ValueError: If the file does not match.
    """
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.pop('init_cfg', None)  # the checkpoint has everything
    model = MODELS.build(cfg.model)
    if checkpoint != NONE:
        state = convert_upstream(tensors_of(read_checkpoint(checkpoint), checkpoint))
        load_whole_model(model, state, checkpoint)
    return model.eval()


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image as RGB.

    Args:
        path: The file.
        size: Width and height to resize to; None to keep it.

    Returns:
        (rows, columns, 3) uint8.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not an image.
    """
    try:
        image = Image.open(path).convert('RGB')
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{path}: no such image') from error
    except OSError as error:
        raise ValueError(f'{path} is not an image: {error}') from error
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR) if size else image)


def normalize(cfg: Config, image: np.ndarray) -> Tensor:
    """Normalize an RGB image like a config's preprocessor: ``(3, rows, columns)`` float.

    Args:
        cfg: A config of any task.
        image: (rows, columns, 3) uint8, RGB.
    """
    settings = {**cfg.get('data_preprocessor', {}), **cfg.model.get('data_preprocessor', {})}
    mean, std = (
        torch.tensor(settings.get(name, [v] * 3)) for name, v in (('mean', 0.0), ('std', 1.0))
    )
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float()
    if not (settings.get('bgr_to_rgb') or settings.get('to_rgb')):
        pixels = pixels.flip(0)
    return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
