# SPDX-License-Identifier: Apache-2.0
"""Importing this module registers the shipped configs with the host libraries by name.

Afterwards ``DetInferencer('focal_t_maskrcnn_3x')``, ``MMSegInferencer('focal_t_upernet_160k')``
and mmpretrain's ``get_model('focal_t_in1k')``, ``list_models`` and
``ImageClassificationInferencer`` work. Names do not include weights: also pass a checkpoint.
"""

from collections.abc import Callable
from importlib.util import find_spec

from mmengine.config import Config
from mmengine.infer import BaseInferencer

from . import compat
from .zoo import config, data_root


def _load_model(
    self: BaseInferencer, model: str, load_of_host: Callable
) -> tuple[Config, str | None]:
    """Look up a name among the shipped configs, then as MMEngine does."""
    try:
        path = config(model)
    except FileNotFoundError:
        return load_of_host(self, model)
    cfg = Config.fromfile(path)
    if cfg.default_scope != self.scope:
        raise ValueError(
            f'{model} is a config for {cfg.default_scope}; {type(self).__name__} expects a config '
            f'for {self.scope}'
        )
    return cfg, None


def _register_classifiers() -> None:
    """Register the classifiers with mmpretrain."""
    from mmpretrain.apis.model import ModelHub

    root = data_root()
    for metafile in sorted(root.glob('configs/classification/**/metafile.yml')):
        ModelHub.register_model_index(metafile, config_prefix=root)


# mmdet and mmseg read their own metafiles only, and MMEngine cannot register others.
compat.replace_model_lookup(BaseInferencer, _load_model)
if find_spec('mmpretrain'):
    _register_classifiers()
