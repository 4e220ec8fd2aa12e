# SPDX-License-Identifier: Apache-2.0
"""Count multiply-accumulates (MACs) by module and kind (see ``conventions``) on the meta device.

PyTorch's FLOP counter counts every operator. The following modules are counted by formulas instead
and return empty tensors: focal attention, because its backends combine keys differently; window
attention and pooling to coarse tokens, to distinguish them from other products; and deformable
convolutions and RoI pooling, which do not run on the meta device.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmfocal import compat
from mmfocal.ops.focal_attention import FocalGeometry

aten = torch.ops.aten
PRODUCTS = (aten.bmm, aten.baddbmm)  # scaled dot-product attention decomposes into these
NORMS = (
    aten.native_layer_norm,
    aten.native_group_norm,
    aten.native_batch_norm,
    compat.EVAL_BATCH_NORM,
)

OutputAndMacs = tuple[Tensor, dict[str, int]]


def _focal_attention(
    module: nn.Module, x: Tensor, map_size: tuple[int, int], shift: int = 0
) -> OutputAndMacs:
    geometry: FocalGeometry = module.geometry
    batch, _, dim = x.shape
    tokens = batch * math.prod(map_size)
    cells = x.shape[:-1].numel() - tokens
    own = geometry.window_size**2
    gathered = own + geometry.num_neighbors
    distinct = sum(key < gathered for key in geometry.square_sources[0])
    region = sum(region.side**2 for region in geometry.regions[1:])
    return x.new_empty(batch, *map_size, dim), dict(
        linear=tokens * 4 * dim**2,
        coarse_kv=cells * 2 * dim**2,
        coarse_q=cells * dim**2,
        gathered_qkv=tokens // own * region * 3 * dim**2,
        attention=2 * tokens * dim * (distinct + region),
        repeated=2 * tokens * dim * (gathered - distinct),
    )


def _fc_pool(module: nn.Module, cells: Tensor) -> OutputAndMacs:
    batch, rows, _, cols, _, dim = cells.shape
    return cells.new_empty(batch, rows, cols, dim), dict(linear=cells.numel())


def _window_attention(module: nn.Module, x: Tensor, mask: Tensor | None = None) -> OutputAndMacs:
    windows, own, dim = x.shape
    tokens = windows * own
    macs = dict(linear=tokens * 4 * dim**2, attention=2 * tokens * dim * own)
    return torch.empty_like(x), macs


def _deform_conv(
    module: nn.Module, x: Tensor, offset: Tensor | None = None, mask: Tensor | None = None
) -> OutputAndMacs:
    if offset is None:  # mmcv's "packs" compute the offset themselves
        module.conv_offset(x)
    per_axis = zip(x.shape[2:], module.kernel_size, module.stride, module.padding, module.dilation)
    size = [(n + 2 * pad - step * (k - 1) - 1) // s + 1 for n, k, s, pad, step in per_axis]
    out = x.new_empty(len(x), module.out_channels, *size)
    return out, dict(deform=out.numel() * module.weight[0].numel())


def _roi_extractor(module: nn.Module, feats: Sequence[Tensor], rois: Tensor) -> OutputAndMacs:
    size = module.roi_layers[0].output_size
    return feats[0].new_empty(len(rois), module.out_channels, *size), {}


# By name, because the host libraries share names and signatures and may not be installed.
FORMULAS: dict[str, Callable[..., OutputAndMacs]] = {
    'FocalAttention': _focal_attention,
    'FcPool': _fc_pool,
    'WindowMSA': _window_attention,
    'DeformConv2d': _deform_conv,
    'ModulatedDeformConv2d': _deform_conv,
    'SingleRoIExtractor': _roi_extractor,
}


def _norm_flops(*shapes, out_shape: Sequence[torch.Size], **kwargs) -> int:
    return 2 * out_shape[0].numel()


class MacCounter(FlopCounterMode):
    """Context manager that counts the operations inside.

    Args:
        model: Model; its modules that have a formula are replaced and return empty tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(display=False, custom_mapping=dict.fromkeys(NORMS, _norm_flops))
        for module in model.modules():
            names = (cls.__name__ for cls in type(module).__mro__)
            formula = next((FORMULAS[name] for name in names if name in FORMULAS), None)
            if formula:
                module.forward = partial(self._forward_by_formula, formula, module)

    def _forward_by_formula(self, formula: Callable, module: nn.Module, *args, **kwargs) -> Tensor:
        out, macs = formula(module, *args, **kwargs)
        for name in self.mod_tracker.parents:
            for kind, count in macs.items():
                self.flop_counts[name][kind] += 2 * count
        return out

    def macs(self) -> dict[str, Counter[str]]:
        """Return MACs by kind for every module that ran; ``'Global'`` has the total.

        Names of modules begin with the class of the outermost module. Counts include submodules.
        """
        kind_of = dict.fromkeys(PRODUCTS, 'product') | dict.fromkeys(NORMS, 'norm')
        macs: dict[str, Counter[str]] = {'Global': Counter()}
        for module, counts in self.flop_counts.items():
            macs[module] = Counter()
            for key, flops in counts.items():
                kind = key if isinstance(key, str) else kind_of.get(key, 'linear')
                macs[module][kind] += flops // 2
        return macs
