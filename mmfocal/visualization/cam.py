# SPDX-License-Identifier: Apache-2.0
"""Class activation maps of Focal Transformers with grad-cam.

The output norms process maps as ``(B, H, W, C)``, but grad-cam expects ``(B, C, H, W)``. Without
the conversion here, the result shows stripes and no error is raised.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

METHODS = ('gradcam', 'gradcam++', 'layercam', 'eigencam', 'eigengradcam', 'scorecam')
CLASS_FREE = ('eigencam',)  # needs no class, so no head


def channels_first(maps: Tensor) -> Tensor:
    """``(B, H, W, C)`` -> ``(B, C, H, W)``: grad-cam's ``reshape_transform``."""
    return maps.permute(0, 3, 1, 2)


class Scores(nn.Module):
    """Class scores of a model, ``(B, classes)``.

    Args:
        model: A classifier of mmpretrain or a segmentor of mmseg; or a backbone, whose scores are
            the means of its last map's channels.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        if not isinstance(self.model, BaseModel):
            return self.model(image)[-1].mean((2, 3))
        scores = self.model(image, mode='tensor')
        scores = scores[-1] if isinstance(scores, tuple | list) else scores
        # the mean over all pixels for a segmentor
        return scores.mean((2, 3)) if scores.ndim == 4 else scores


def cam_method(name: str) -> Callable:
    """Return a class of grad-cam by name.

    Raises:
        ImportError: If grad-cam is not installed.
        ValueError: If there is no such method; lists the available ones.
    """
    try:
        import pytorch_grad_cam as library
    except ImportError as error:
        raise ImportError('class activation maps need grad-cam: pip install grad-cam') from error
    classes = dict(
        zip(
            METHODS,
            (
                library.GradCAM,
                library.GradCAMPlusPlus,
                library.LayerCAM,
                library.EigenCAM,
                library.EigenGradCAM,
                library.ScoreCAM,
            ),
            strict=True,
        )
    )
    if name not in classes:
        raise ValueError(f'method={name!r}: expected one of {", ".join(METHODS)}')
    return partial(classes[name], reshape_transform=channels_first)


def activation_map(
    model: nn.Module, layer: nn.Module, image: Tensor, method: str, target: int | None = None
) -> tuple[np.ndarray, int]:
    """Compute the activation map of a class.

    Args:
        model: See :class:`Scores`.
        layer: Layer to explain: an output norm of the backbone, or a block.
        image: ``(3, rows, columns)``, normalized.
        method: One of ``METHODS``.
        target: The class; None for the one with the best score.

    Returns:
        (rows, columns) in 0..1, and the class.

    Raises:
        ValueError: If there is no such class or method.
    """
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    make, scores = cam_method(method), Scores(model).eval()
    with torch.no_grad():
        found = scores(image[None])[0]
    target = int(found.argmax()) if target is None else target
    if not 0 <= target < len(found):
        raise ValueError(f'target={target}: expected 0 to {len(found) - 1}')
    with make(model=scores, target_layers=[layer]) as cam:
        maps = cam(input_tensor=image[None], targets=[ClassifierOutputTarget(target)])
    return maps[0], target
