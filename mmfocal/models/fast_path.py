# SPDX-License-Identifier: Apache-2.0
"""Choice between the standard forward pass of a block and the fast path of its device.

A fast path reads the parameters of the layers and calls none of them but stochastic depth. It
therefore accepts stock blocks only: subclassed, wrapped, hooked, masked, parametrized and
quantized layers take the standard forward pass.
"""

from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from mmfocal import compat
from mmfocal.ops.block import Affine, BlockParameters, Projection, Steps, run_block
from mmfocal.ops.cpu import memory
from mmfocal.ops.cpu.bias_cache import kept_bias
from mmfocal.ops.cpu.block import infer_block, train_block
from mmfocal.ops.focal_attention.api import IMPLS, log_choice, resolve_impl
from mmfocal.ops.focal_attention.bias import bias_tables
from mmfocal.ops.focal_attention.impl import triton

from .layers import DropPath, FcPool, Mlp

if TYPE_CHECKING:
    from .focal_transformer import FocalBlock  # circular at run time

_TRITON_STEPS = Steps(triton.pool_tokens)
_LAYERS = (nn.LayerNorm, nn.Linear, nn.GELU, nn.Dropout)
_CONTAINERS = (nn.ModuleList, nn.ParameterList)
_STOCK: dict[type, dict[str, object]] = {}  # types of layers, and their original methods


def _methods(cls: type) -> dict[str, object]:
    """Return the methods of a type, except constructors, which torch.compile wraps."""
    return {
        name: value
        for name, value in vars(cls).items()
        if callable(value) and (name == '__call__' or not name.startswith('__'))
    }


def _library(x: object) -> str:
    return getattr(x, '__module__', '').partition('.')[0]


def register_stock(*types: type) -> None:
    """Register types as stock layers of a block, with their present methods.

    Types with a method from another library have been patched and are not registered.
    """
    for cls in types:
        methods = _methods(cls)
        if all(_library(method) == _library(cls) for method in methods.values()):
            _STOCK[cls] = methods


register_stock(DropPath, FcPool, Mlp, *_LAYERS, *_CONTAINERS)
_MODULE_METHODS = compat.call_methods()


def _is_patched(cls: type, methods: dict[str, object]) -> bool:
    """Whether a method of a type has been replaced, or one that calls it has been added."""
    now = vars(cls)
    return any(now.get(name) is not methods.get(name) for name in {*methods, *_MODULE_METHODS})


def _has_stock_methods(module: nn.Module) -> bool:
    """Whether calling the object runs its stock methods, without hooks or overrides."""
    state = vars(module).keys()
    is_replaced = not (
        state.isdisjoint(_STOCK[type(module)]) and state.isdisjoint(_MODULE_METHODS)
    )
    return not is_replaced and not compat.has_hooks(module)


def _has_stock_parts(block: Any) -> bool:
    """Whether the layers of a block have their stock types."""
    if not (hasattr(block, 'attn') and hasattr(block.attn, 'qkv') and type(block.mlp) is Mlp):
        return False
    attn, mlp = block.attn, block.mlp
    parts = [block.norm1, attn.qkv, attn.proj, attn.proj_drop, block.drop_path, block.norm2]
    parts += [mlp.fc1, mlp.act, mlp.fc2, mlp.drop]
    types: list[type] = [nn.LayerNorm, nn.Linear, nn.Linear, nn.Dropout, DropPath, nn.LayerNorm]
    types += [nn.Linear, nn.GELU, nn.Linear, nn.Dropout]
    layers = (block.norm1, attn.proj, block.norm2, mlp.fc1, mlp.fc2)
    return (
        list(map(type, parts)) == types
        and all(type(pool) is FcPool for pool in block.pool_layers)
        and all(layer.bias is not None for layer in layers)
        and all(len(norm.normalized_shape) == 1 for norm in (block.norm1, block.norm2))
        and mlp.act.approximate == 'none'
    )


def _is_active(dropout: nn.Dropout) -> bool:
    return dropout.p > 0 and dropout.training


def is_stock(block: Any) -> TypeGuard['FocalBlock']:  # Any: the attributes are checked here
    """Return whether a block and its layers are stock and all parameters are dense tensors."""
    modules = list(block.modules())
    types = set(map(type, modules))
    return (
        types <= _STOCK.keys()
        and not compat.has_global_hooks()
        and not _is_patched(nn.Module, _MODULE_METHODS)
        and not any(_is_patched(cls, _STOCK[cls]) for cls in types)
        and all(map(_has_stock_methods, modules))
        and _has_stock_parts(block)
        and all(map(compat.is_dense_tensor, block.parameters()))
    )


def _drops(block: 'FocalBlock') -> bool:
    """Whether a dropout layer is active; stochastic depth does not count."""
    attn = block.attn
    drops_weights = attn.training and attn.attn_drop > 0
    return bool(drops_weights) or _is_active(attn.proj_drop) or _is_active(block.mlp.drop)


def _affine(layer: nn.Linear | nn.LayerNorm | FcPool) -> Affine:
    return Affine(layer.weight, layer.bias)


def block_parameters(block: 'FocalBlock') -> BlockParameters:
    """Return the parameters of a stock block."""
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


def _tensors(p: BlockParameters) -> list[Tensor]:
    """Return all tensors of a block, registered as parameters or not."""
    layers = (p.norm1, *p.pool, p.qkv, p.proj, p.norm2, p.fc1, p.fc2)
    tensors = [x for layer in layers for x in layer] + [p.gamma1, p.gamma2]
    return [x for x in (*tensors, *bias_tables(p.bias)) if x is not None]


def _run_on_cpu(block: 'FocalBlock', x: Tensor, shift: int) -> Tensor:
    p = block_parameters(block)
    is_recorded = memory.records_gradients([x, *_tensors(p)])
    drops_paths = block.drop_path.training and block.drop_path.drop_prob > 0
    if is_recorded or drops_paths or compat.is_autocast_enabled('cpu'):
        return train_block(x, p, shift)
    if resolve_impl(p.impl) == 'auto':
        log_choice('chunked', 'cpu')
    with torch.no_grad():
        return infer_block(x, p, shift, kept_bias(block.attn, p.bias, p.geometry))


def _path_of(block: nn.Module, x: Tensor) -> str | None:
    """Return the fast path of the backend on this device, or None; cheap, for any module."""
    impl, device = getattr(getattr(block, 'attn', None), 'impl', None), x.device.type
    if not isinstance(impl, str) or impl not in IMPLS:
        return None
    impl = resolve_impl(impl)
    if device == 'cpu' and impl in ('auto', 'chunked'):
        return 'cpu'
    if impl == 'triton' or (impl == 'auto' and device == 'cuda'):
        reasons = triton.unavailable_reasons(x.device, triton.tokens_dtype(x))
        return None if reasons else 'triton'
    return None


def _supports(path: str, block: 'FocalBlock', x: Tensor) -> bool:
    """Return whether a fast path supports a stock block and its input."""
    if _drops(block):
        return False
    if path == 'cpu':
        return not memory.unsupported_reasons([x, *block.parameters()])
    return not triton.tokens.unsupported_reasons(x, block.attn.geometry)


def call_block(block: nn.Module, x: Tensor) -> Tensor:
    """Return ``block(x)``, by a fast path if one applies: ``(B, H, W, C)`` -> same shape."""
    is_plain = compat.is_recorded() or compat.are_transforms_active() or x.numel() == 0
    path = None if is_plain else _path_of(block, x)  # asked first, as it visits no layers
    if path is None or not is_stock(block) or not _supports(path, block, x):
        return block(x)
    shift = block.effective_shift(*x.shape[1:3])
    if path == 'cpu':
        return _run_on_cpu(block, x, shift)
    return run_block(x, block_parameters(block), shift, _TRITON_STEPS)
