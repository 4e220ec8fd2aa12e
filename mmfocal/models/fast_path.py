# SPDX-License-Identifier: Apache-2.0
"""Which way a block is computed: as written, or by a faster path of its device.

A fast path computes what the layers hold, not what they do. So it takes exactly stock blocks:
subclasses, wrapped, hooked, pruned, parametrized or quantized layers run as written.
"""

from functools import cache
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from torch import Tensor, nn

from mmfocal import compat
from mmfocal.ops.block import Affine, BlockParameters, Projection, Steps, run_block
from mmfocal.ops.cpu import memory
from mmfocal.ops.cpu.bias_cache import kept_bias
from mmfocal.ops.cpu.block import infer_block, train_block
from mmfocal.ops.focal_attention.api import log_choice, resolve_impl
from mmfocal.ops.focal_attention.impl import triton

from .layers import DropPath, FcPool, Mlp

if TYPE_CHECKING:
    from .focal_transformer import FocalBlock  # which imports this module

_TRITON_STEPS = Steps(triton.pool_tokens)


@cache
def _stock_types() -> dict[type, object]:
    """Types of a stock block and its parts, with the ``forward`` that each has at first."""
    from .focal_transformer import FocalAttention, FocalBlock  # which imports this module

    parts = (FocalBlock, FocalAttention, FcPool, DropPath, Mlp)
    layers = (nn.LayerNorm, nn.Linear, nn.GELU, nn.Dropout)
    containers = (nn.ModuleList, nn.ParameterList)
    return {cls: cls.forward for cls in (*parts, *layers, *containers)}


def _is_unchanged(module: nn.Module) -> bool:
    """Whether calling a module runs what its class defines here, and no more."""
    cls, stock = type(module), _stock_types()
    is_stock = cls in stock and stock[cls] is cls.forward
    is_patched = not vars(module).keys().isdisjoint(vars(cls))  # a method replaced on the object
    return is_stock and not is_patched and not compat.has_hooks(module)


def _is_inactive(module: nn.Dropout) -> bool:
    """Whether it is a dropout that drops nothing now."""
    return module.p == 0 or not module.training


def is_stock(block: Any) -> TypeGuard['FocalBlock']:  # Any: this finds out what it has
    """Whether a block and all its parts are exactly stock, and no dropout is active.

    Stochastic depth may be active.
    """
    if compat.has_global_hooks() or not all(map(_is_unchanged, block.modules())):
        return False
    attn, mlp = block.attn, block.mlp
    types = (nn.LayerNorm, nn.Linear, nn.Linear, nn.LayerNorm, nn.Linear, nn.Linear)
    layers = (block.norm1, attn.qkv, attn.proj, block.norm2, mlp.fc1, mlp.fc2)
    parts = (attn.proj_drop, mlp.drop, mlp.act, block.drop_path, *block.pool_layers)
    return (
        tuple(map(type, layers)) == types
        and tuple(map(type, parts[:4])) == (nn.Dropout, nn.Dropout, nn.GELU, DropPath)
        and all(type(pool) is FcPool for pool in block.pool_layers)
        and all(layer.bias is not None for layer in layers if layer is not attn.qkv)
        and mlp.act.approximate == 'none'
        and not (attn.training and attn.attn_drop)
        and _is_inactive(attn.proj_drop)
        and _is_inactive(mlp.drop)
        and all(map(compat.is_dense_tensor, block.parameters()))
    )


def _affine(layer: nn.Linear | nn.LayerNorm) -> Affine:
    return Affine(layer.weight, layer.bias)


def block_parameters(block: 'FocalBlock') -> BlockParameters:
    """What a stock block computes with."""
    attn, mlp = block.attn, block.mlp
    return BlockParameters(
        norm1=_affine(block.norm1),
        pool=tuple(_affine(cast(FcPool, pool)) for pool in block.pool_layers),
        qkv=Projection(attn.qkv.weight, attn.qkv.bias),
        bias=attn.bias,
        proj=_affine(attn.proj),
        norm2=_affine(block.norm2),
        fc1=_affine(mlp.fc1),
        fc2=_affine(mlp.fc2),
        gamma1=block.gamma_1,
        gamma2=block.gamma_2,
        eps1=block.norm1.eps,
        eps2=block.norm2.eps,
        geometry=attn.geometry,
        scale=attn.scale,
        impl=attn.impl,
        drop_path=block.drop_path,
    )


def _run_on_cpu(block: 'FocalBlock', x: Tensor, shift: int) -> Tensor:
    p = block_parameters(block)
    is_training = memory.records_gradients([x, *block.parameters()])
    if is_training or compat.is_autocast_enabled('cpu'):
        return train_block(x, p, shift)
    if resolve_impl(p.impl) == 'auto':
        log_choice('chunked', 'cpu')
    return infer_block(x, p, shift, kept_bias(block.attn, p.bias, p.geometry))


def _path_of(block: nn.Module, x: Tensor) -> str | None:
    """The fast path that the device and the chosen backend allow, if any."""
    if compat.is_recorded() or x.numel() == 0:
        return None
    attn = getattr(block, 'attn', None)
    impl, device = resolve_impl(getattr(attn, 'impl', 'sdpa')), x.device.type
    if device == 'cpu' and impl in ('auto', 'chunked'):
        return None if memory.unsupported_reasons([x, *block.parameters()]) else 'cpu'
    if impl == 'triton' or (impl == 'auto' and device == 'cuda'):
        levels = len(getattr(block, 'pool_layers', ()))
        reasons = triton.unavailable_reasons(x) or triton.tokens.unsupported_reasons(x, levels)
        return None if reasons else 'triton'
    return None


def call_block(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)``, by a fast path where one computes the same: ``(B, H, W, C)`` both."""
    path = _path_of(block, x)
    if path is None or not is_stock(block):
        return block(x)
    shift = block.effective_shift(*x.shape[1:3])
    if path == 'cpu':
        return _run_on_cpu(block, x, shift)
    return run_block(x, block_parameters(block), shift, _TRITON_STEPS)
