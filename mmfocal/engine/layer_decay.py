# SPDX-License-Identifier: Apache-2.0
"""Layer-wise learning rate decay for detectors, segmentors and classifiers."""

from collections import defaultdict

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from mmfocal.errors import InputError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Multiply the learning rate by ``layer_decay_rate`` for each earlier backbone layer.

    The backbone defines the depth of a parameter (``get_layer_depth``), so any model around it is
    supported; mmdet's and mmseg's constructors support ConvNeXt, BEiT and ViT only. Parameters
    outside the backbone have the full rate. ``custom_keys`` and the other settings of
    ``paramwise_cfg``, including ``lr_mult``, also apply.

    In a config::

        optim_wrapper = dict(
            constructor='LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.9),
        )
    """

    def __call__(self, model: nn.Module) -> nn.Module:
        """Build the optimizer's wrapper.

        Args:
            model: Model with a ``backbone`` that has ``get_layer_depth``.

        Returns:
            The wrapper, with one group per parameter.

        Raises:
            ValueError: If ``layer_decay_rate`` is missing in ``paramwise_cfg`` or not in (0, 1].
            TypeError: If the backbone has no ``get_layer_depth``.
        """
        self.decay_rate = self.paramwise_cfg.get('layer_decay_rate')
        if self.decay_rate is None or not 0 < self.decay_rate <= 1:
            raise InputError(
                f'paramwise_cfg.layer_decay_rate={self.decay_rate!r}; expected a number above 0 '
                'and at most 1'
            )
        inner = getattr(model, 'module', model)  # wrapped for several processes
        if not hasattr(getattr(inner, 'backbone', None), 'get_layer_depth'):
            raise TypeError(
                f'{type(inner).__name__} has no backbone with get_layer_depth, which layer-wise '
                'decay needs'
            )
        return super().__call__(model)

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Add groups as MMEngine does, and scale the learning rates of the backbone's groups.

        Args:
            params: Groups so far; extended in place.
            module: The model; one of its modules in recursive calls.
            **kwargs: ``prefix`` and others, which MMEngine passes in recursive calls.
        """
        super().add_params(params, module, **kwargs)
        if kwargs.get('prefix'):
            return
        names = {id(param): name for name, param in module.named_parameters()}
        rates = defaultdict(list)
        for group in params:
            (param,) = group['params']
            depth, count = module.backbone.get_layer_depth(names[id(param)], 'backbone.')
            group['lr_scale'] = self.decay_rate ** (count - 1 - depth)
            group['lr'] = group.get('lr', self.base_lr) * group['lr_scale']
            rates[depth].append(group['lr'])
        text = ', '.join(f'{min(rates[depth]):.3g}' for depth in sorted(rates))
        print_log(f'learning rates from the stem to the heads: {text}', logger='current')
