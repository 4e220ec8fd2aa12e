# SPDX-License-Identifier: Apache-2.0
"""Choice between the standard forward pass of a block and the fast path of its device.

A fast path computes a whole block: fused or in chunks, in training and inference. It reads the
parameters of the layers; the only layer that it calls is stochastic depth. It therefore accepts
stock blocks only: subclassed, wrapped, hooked, masked, parametrized and
quantized layers take the standard forward pass.
"""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mmfocal import compat
from mmfocal.ops.block import Affine, BlockParameters, Projection, Steps, run_block
from mmfocal.ops.cpu import memory
from mmfocal.ops.cpu.bias_cache import kept_bias
from mmfocal.ops.cpu.block import infer_block, whole_block
from mmfocal.ops.focal_attention.api import IMPLS, log_choice, resolve_impl
from mmfocal.ops.focal_attention.bias import bias_tables
from mmfocal.ops.focal_attention.impl import triton

from .layers import DropPath, FcPool, Mlp

if TYPE_CHECKING:
    from .focal_transformer import FocalBlock  # circular at run time

_TRITON_STEPS = Steps(triton.pool_tokens)
_LAYERS = (nn.LayerNorm, nn.Linear, nn.GELU, nn.Dropout)
_CONTAINERS = (nn.ModuleList, nn.ParameterList)
_MODULE_METHODS = compat.call_methods()
# Types of layers, and the names of their methods.
_STOCK: dict[type, set[str]] = {}
# Attributes of a type, the name of a method, and the original; None if it is inherited.
_METHODS = [(vars(nn.Module), name, method) for name, method in _MODULE_METHODS.items()]
# Parts of a block, and of its attention and MLP, with their types.
_BLOCK: dict[str, type] = {'pool_layers': nn.ModuleList, 'norm1': nn.LayerNorm}
_BLOCK |= {'norm2': nn.LayerNorm, 'drop_path': DropPath, 'mlp': Mlp}
_ATTENTION = {'qkv': nn.Linear, 'proj': nn.Linear, 'proj_drop': nn.Dropout}
_MLP = {'fc1': nn.Linear, 'act': nn.GELU, 'fc2': nn.Linear, 'drop': nn.Dropout}


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
    """Register types as stock layers of a block, with their current methods.

    Types with a method from another library have been patched and are not registered.
    """
    for cls in types:
        methods = _methods(cls)
        if all(_library(method) == _library(cls) for method in methods.values()):
            methods = dict.fromkeys(_MODULE_METHODS) | methods
            _STOCK[cls] = set(methods)
            _METHODS.extend((vars(cls), name, method) for name, method in methods.items())


register_stock(DropPath, FcPool, Mlp, *_LAYERS, *_CONTAINERS)


def _are_types_patched() -> bool:
    """Return whether a method of a stock type, or of a module that calls it, has been replaced."""
    return any(now.get(name) is not method for now, name, method in _METHODS)


def _is_stock(module: nn.Module) -> bool:
    """Return whether a module and its parts run stock methods on dense tensors without hooks."""
    methods, state = _STOCK.get(type(module)), vars(module)
    if methods is None or not state.keys().isdisjoint(methods) or compat.has_hooks(module):
        return False
    for parameter in state['_parameters'].values():
        if parameter is not None and not compat.is_dense_tensor(parameter):
            return False
    for part in state['_modules'].values():
        if part is not None and not _is_stock(part):
            return False
    return True


def _parts(module: nn.Module, types: dict[str, type]) -> list[Any] | None:
    """Return the named parts of a module, or None if one has another type."""
    parts = [vars(module)['_modules'].get(name) for name in types]
    return parts if list(map(type, parts)) == list(types.values()) else None


def _tensor(layer: nn.Module, name: str) -> Any:
    """Return a parameter or None, faster than ``getattr``. FSDP's flat ones are attributes."""
    state = vars(layer)
    return state[name] if name in state else state['_parameters'].get(name)


def _affine(layer: nn.Module) -> Affine:
    return Affine(_tensor(layer, 'weight'), _tensor(layer, 'bias'))


def _agrees(block: 'FocalBlock', affine: list[Affine], pools: list[Any]) -> bool:
    """Return whether settings of the layers, which fast paths do not read, fit the parameters."""
    norms, dim = (block.norm1, block.norm2), tuple(affine[0].weight.shape)
    return (
        len(dim) == 1
        and all(tuple(norm.normalized_shape) == dim for norm in norms)
        and block.geometry == block.attn.geometry
        and (block.pool_method == 'fc' or not pools)
    )


def _read_parameters(block: 'FocalBlock') -> BlockParameters | None:
    """Return the parameters of a block of stock modules, or None if a part has another type."""
    attn, parts = vars(block)['_modules'].get('attn'), _parts(block, _BLOCK)
    if attn is None or parts is None:
        return None
    pools, norm1, norm2, drop_path, mlp = parts
    layers, mlp_layers = _parts(attn, _ATTENTION), _parts(mlp, _MLP)
    if layers is None or mlp_layers is None or any(type(pool) is not FcPool for pool in pools):
        return None
    (qkv, proj, _), (fc1, act, fc2, _) = layers, mlp_layers
    pool = tuple(map(_affine, pools))
    affine = [*map(_affine, (norm1, proj, norm2, fc1, fc2))]
    is_complete = all(x is not None for layer in (*affine, *pool) for x in layer)
    if not (is_complete and act.approximate == 'none' and _agrees(block, affine, pools)):
        return None
    return BlockParameters(
        norm1=affine[0],
        pool=pool,
        qkv=Projection(_tensor(qkv, 'weight'), _tensor(qkv, 'bias')),
        bias=attn.bias,
        proj=affine[1],
        norm2=affine[2],
        fc1=affine[3],
        fc2=affine[4],
        gamma1=_tensor(block, 'gamma_1'),
        gamma2=_tensor(block, 'gamma_2'),
        eps1=norm1.eps,
        eps2=norm2.eps,
        geometry=attn.geometry,
        scale=attn.scale,
        impl=attn.impl,
        drop_path=drop_path,
    )


def stock_parameters(block: Any) -> BlockParameters | None:
    """Return the parameters of a stock block of stock layers, all dense tensors, or None."""
    if compat.has_global_hooks() or _are_types_patched() or not _is_stock(block):
        return None
    return _read_parameters(block)


def _is_active(dropout: nn.Dropout) -> bool:
    return dropout.p > 0 and dropout.training


def _drops(block: 'FocalBlock') -> bool:
    """Return whether a dropout layer is active; stochastic depth does not count."""
    attn = block.attn
    drops_weights = attn.training and attn.attn_drop > 0
    return bool(drops_weights) or _is_active(attn.proj_drop) or _is_active(block.mlp.drop)


def _tensors(p: BlockParameters) -> list[Tensor]:
    """Return all tensors of a block, including those that are not registered as parameters."""
    layers = (p.norm1, *p.pool, p.qkv, p.proj, p.norm2, p.fc1, p.fc2)
    tensors = [x for layer in layers for x in layer] + [p.gamma1, p.gamma2]
    return [x for x in (*tensors, *bias_tables(p.bias)) if x is not None]


def _run_on_cpu(block: 'FocalBlock', p: BlockParameters, x: Tensor, shift: int) -> Tensor:
    is_recorded = memory.records_gradients([x, *_tensors(p)])
    drops_paths = block.drop_path.training and block.drop_path.drop_prob > 0
    if is_recorded or drops_paths or compat.is_autocast_enabled('cpu'):
        return whole_block(x, p, shift)
    if resolve_impl(p.impl) == 'auto':
        log_choice('chunked', 'cpu')
    with torch.no_grad():
        return infer_block(x, p, shift, kept_bias(block.attn, p.bias, p.geometry))


def _path_of(block: nn.Module, x: Tensor) -> str | None:
    """Return the fast path of the backend on this device, or None.

    The check is cheap and accepts any module.
    """
    impl, device = getattr(getattr(block, 'attn', None), 'impl', None), x.device.type
    if not isinstance(impl, str) or impl not in IMPLS:
        return None
    impl = resolve_impl(impl)
    if device == 'cpu' and impl in ('auto', 'chunked'):
        return 'cpu'
    if impl == 'triton' or (impl == 'auto' and device == 'cuda'):
        reasons = triton.device_reasons(x.device, triton.tokens_dtype(x))
        return None if reasons else 'triton'
    return None


def _supports(path: str, block: 'FocalBlock', p: BlockParameters, x: Tensor) -> bool:
    """Return whether a fast path supports a stock block and its input."""
    if _drops(block):
        return False
    if path == 'cpu':
        return not memory.unsupported_reasons([x, *_tensors(p)])
    return not triton.tokens.unsupported_reasons(x, p.geometry)


def call_block(block: nn.Module, x: Tensor) -> Tensor:
    """Return ``block(x)``, by a fast path if one applies: ``(B, H, W, C)`` -> same shape."""
    # Recorded calls run the layers, also those that pool. The Dynamo of PyTorch 2.11 cannot trace
    # the check for stock blocks, which reads the `__dict__` of modules, nor keep its result as a
    # constant, as the argument is a module. Inductor compiles the layers; attention consists of
    # kernels in its graph.
    is_plain = compat.is_recorded() or compat.are_transforms_active() or x.numel() == 0
    path = None if is_plain else _path_of(block, x)  # first, because it visits no layers
    p = None if path is None else stock_parameters(block)
    if path is None or p is None:
        return block(x)
    stock = cast('FocalBlock', block)
    if not _supports(path, stock, p, x):
        return block(x)
    shift = stock.effective_shift(*x.shape[1:3])
    if path == 'cpu':
        return _run_on_cpu(stock, p, x, shift)
    return run_block(x, p, shift, _TRITON_STEPS)
