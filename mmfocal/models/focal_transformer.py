# SPDX-License-Identifier: Apache-2.0
"""Focal Transformer backbone.

Paper: `Focal Self-attention for Local-Global Interactions in Vision Transformers
<https://arxiv.org/abs/2107.00641>`_ (NeurIPS 2021).

Differs from the released classification code (https://github.com/microsoft/Focal-Transformer) in:

* any input size: maps are padded at run time, nothing stores a resolution;
* window, expand and shift are configuration, not shrunk to the map's size. For 224-pixel
  checkpoints set ``expand_sizes=(3, 3, 3, 0)``;
* one output norm per stage (``norm0`` ... ``norm3``) instead of a final ``norm``, and no head;
* attention is a function with several back ends (``mmfocal.ops.focal_attention``);
* index buffers do not exist, so checkpoints hold parameters only.

Shape legend: ``B`` batch, ``H, W`` token map of a stage, ``C`` its channels, ``h`` heads.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmfocal.ops import chunked_block, cpu
from mmfocal.ops.focal_attention import FocalBias, FocalGeometry, focal_attention
from mmfocal.ops.focal_attention.api import check_impl, log_choice, resolve_impl
from mmfocal.ops.focal_attention.bias_cache import BiasCache
from mmfocal.ops.linear import linear

from .layers import (
    DropPath,
    Linear,
    Mlp,
    has_no_hooks,
    is_replaceable,
    make_pool_layer,
    mlp_parameters,
    norm_mlp,
    pad_or_crop,
    pad_to_multiple,
    pool_cells,
)

POOL_METHODS = ('fc', 'conv', 'mean', 'max', 'none')
EXPAND_LAYERS = ('all', 'even', 'odd')


class PatchEmbed(nn.Module):
    """Strided convolution and LayerNorm: the stem, and the downsampling between stages.

    Args:
        in_channels: Channels of the input map.
        out_channels: Channels of the output map.
        stride: 4 for the stem, 2 between stages.
        use_conv_embed: Overlapping kernels (7x7 stem, 3x3 between) instead of ``stride x stride``.
        use_pre_norm: GroupNorm with one group before the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        use_conv_embed: bool = False,
        use_pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.stride = stride
        kernel = {4: 7, 2: 3}[stride] if use_conv_embed else stride
        padding = stride // 2 if use_conv_embed else 0
        self.pre_norm = nn.GroupNorm(1, in_channels) if use_pre_norm else nn.Identity()
        self.proj = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, ceil(H / stride), ceil(W / stride), C_out)``."""
        x = pad_to_multiple(self.pre_norm(x).permute(0, 2, 3, 1), self.stride)
        return self.norm(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class FocalAttention(nn.Module):
    """Projections and bias tables around :func:`mmfocal.ops.focal_attention.focal_attention`.

    Args:
        dim: Channels C.
        num_heads: Heads h.
        geometry: The key set of a window.
        qkv_bias: Add a learnable bias to queries, keys and values.
        qk_scale: Replaces ``(C / h) ** -0.5``; None, False and 0 keep it.
        attn_drop: Dropout on the attention weights.
        proj_drop: Dropout on the output.
        impl: Back end of the attention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        geometry: FocalGeometry,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        impl: str = 'auto',
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.attn_drop = attn_drop
        self.impl = impl
        w = geometry.window_size
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * w - 1) ** 2, num_heads))
        self.relative_position_bias_table_to_neighbors = None
        if geometry.expand_size:
            self.relative_position_bias_table_to_neighbors = nn.Parameter(
                torch.empty(1, num_heads, w * w, geometry.num_neighbors)
            )
        self.relative_position_bias_table_to_windows = nn.ParameterList(
            nn.Parameter(torch.empty(num_heads, (w + geometry.region_size(level) - 1) ** 2))
            for level in geometry.coarse_levels
        )
        self.bias_cache = BiasCache()
        self.reset_tables()

    @property
    def bias(self) -> FocalBias:
        return FocalBias(
            self.relative_position_bias_table,
            self.relative_position_bias_table_to_neighbors,
            tuple(self.relative_position_bias_table_to_windows),
        )

    def reset_tables(self) -> None:
        """Initialise the tables as the released code does: own zero, the others random."""
        nn.init.zeros_(self.bias.own)
        if self.bias.neighbors is not None:
            nn.init.trunc_normal_(self.bias.neighbors, std=0.02)
        for table in self.bias.coarse:
            nn.init.trunc_normal_(table, std=0.02)

    def composed_bias(self) -> FocalBias:
        """The tables, with their composition where it is kept until they change."""
        return self.bias_cache(self.bias, self.geometry)

    def forward(self, x: Tensor, coarse: Sequence[Tensor], geometry: FocalGeometry) -> Tensor:
        """Attend.

        Args:
            x: ``(B, H, W, C)``, H and W multiples of the window.
            coarse: Pooled maps, ``(B, 2^k nH, 2^k nW, C)`` per level k.
            geometry: The layer's own geometry, with or without shift.

        Returns:
            ``(B, H, W, C)``.
        """
        dim = x.shape[-1]
        kv_weight = self.qkv.weight[dim:]  # queries of coarse tokens are never used
        kv_bias = None if self.qkv.bias is None else self.qkv.bias[dim:]
        out = focal_attention(
            self.qkv(x),
            tuple(linear(level, kv_weight, kv_bias) for level in coarse),
            self.composed_bias(),
            geometry,
            scale=self.scale,
            dropout_p=self.attn_drop if self.training else 0.0,
            impl=self.impl,
        )
        return self.proj_drop(self.proj(out))


def _roll_back(x: Tensor, geometry: FocalGeometry) -> Tensor:
    """Undo the shift of ``(B, H, W, C)``."""
    return torch.roll(x, (geometry.shift_size,) * 2, (1, 2)) if geometry.shift_size else x


class FocalBlock(nn.Module):
    """Focal attention and MLP, each with LayerNorm before and a residual around it.

    Args:
        dim: Channels C.
        num_heads: Heads h.
        geometry: The key set of a window; its ``shift_size`` is what this block rolls by.
        pool_method: How coarse tokens are made.
        mlp_ratio: Hidden channels of the MLP over C.
        drop: Dropout after the projection and both MLP layers.
        drop_path: Stochastic depth rate.
        layer_scale_init: Initial value of the residual scales; None for none.
        **attn_cfg: Further arguments of :class:`FocalAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        geometry: FocalGeometry,
        pool_method: str = 'fc',
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        layer_scale_init: float | None = None,
        **attn_cfg,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.unshifted_geometry = replace(geometry, shift_size=0)
        self.pool_layers = nn.ModuleList(
            make_pool_layer(pool_method, dim, geometry.cell_size(level))
            for level in geometry.coarse_levels
        )
        self.norm1 = nn.LayerNorm(dim)
        self.attn = FocalAttention(dim, num_heads, geometry, proj_drop=drop, **attn_cfg)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale_init is not None:
            self.gamma_1 = nn.Parameter(torch.full((dim,), float(layer_scale_init)))
            self.gamma_2 = nn.Parameter(torch.full((dim,), float(layer_scale_init)))

    def _geometry_of(self, x: Tensor) -> FocalGeometry:
        """A map that is not larger than a window is not shifted."""
        is_small = min(x.shape[1:3]) <= self.geometry.window_size
        return self.unshifted_geometry if is_small else self.geometry

    def _roll_and_pool(self, x: Tensor, geometry: FocalGeometry) -> tuple[Tensor, list[Tensor]]:
        """Padded map ``(B, H, W, C)`` as it is attended, and its coarse maps."""
        if geometry.shift_size:
            x = torch.roll(x, (-geometry.shift_size,) * 2, dims=(1, 2))
        windows = [size // geometry.window_size for size in x.shape[1:3]]
        return x, [
            pool_cells(x, pool, geometry.cell_size(k), tuple(2**k * n for n in windows))
            for k, pool in enumerate(self.pool_layers)
        ]

    def _attend(self, x: Tensor) -> Tensor:
        """Pad, roll, pool, attend, and undo: ``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        _, height, width, _ = x.shape
        geometry = self._geometry_of(x)
        x = pad_to_multiple(x, geometry.window_size)
        x = self.attn(*self._roll_and_pool(x, geometry), geometry)
        return pad_or_crop(_roll_back(x, geometry), height, width)

    def _is_lean(self, x: Tensor) -> bool:
        """Whether :mod:`mmfocal.ops.chunked_block` computes what the block does, and faster.

        So it is on CPUs without gradients, unless it would leave something out: hooks, replaced
        layers, dropout, another back end, or the types that autocast chooses.
        """
        if cpu.refusals([x]) or x.numel() == 0 or torch.is_autocast_enabled('cpu'):
            return False
        attn, tensors = self.attn, [x, *self.parameters()]
        return (
            not cpu.records_gradients(tensors)
            and resolve_impl(attn.impl) in ('auto', 'chunked')
            and not (attn.training and attn.attn_drop)
            and (type(attn), type(attn.qkv)) == (FocalAttention, Linear)
            and all(map(has_no_hooks, (attn, attn.qkv, *self.pool_layers)))
            and is_replaceable(
                *(self.norm1, attn.proj, attn.proj_drop, self.drop_path, self.norm2, self.mlp)
            )
            and not cpu.refusals(tensors)
        )

    def _forward_lean(self, x: Tensor) -> Tensor:
        """See :meth:`_is_lean`."""
        if resolve_impl(self.attn.impl) == 'auto':
            log_choice('chunked', 'cpu')
        geometry, attn = self._geometry_of(x), self.attn
        norm = (self.norm1.weight, self.norm1.bias, self.norm1.eps)
        attended = chunked_block.attend(
            *self._roll_and_pool(
                chunked_block.padded_norm(x, *norm, geometry.window_size), geometry
            ),
            chunked_block.Projection(attn.qkv.weight, attn.qkv.bias),
            attn.composed_bias(),
            geometry,
            attn.scale,
        )
        return chunked_block.add_branches(
            x,
            _roll_back(attended, geometry),
            chunked_block.Projection(attn.proj.weight, attn.proj.bias),
            mlp_parameters(self.norm2, self.mlp),
            self.norm2.eps,
            (self.gamma_1, self.gamma_2),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        if self._is_lean(x):
            return self._forward_lean(x)
        attended = self._attend(self.norm1(x))
        if self.gamma_1 is not None:
            attended = self.gamma_1 * attended
        x = x + self.drop_path(attended)
        mixed = norm_mlp(self.norm2, self.mlp, x)
        if self.gamma_2 is not None:
            mixed = self.gamma_2 * mixed
        return x + self.drop_path(mixed)


class FocalStage(nn.Module):
    """Blocks of one resolution and the downsampling that follows them.

    Args:
        dim: Channels C.
        num_heads: Heads h.
        geometries: Key set of each block.
        drop_paths: Stochastic depth rate of each block.
        downsample: Makes the next stage's map; None in the last stage.
        with_cp: Recompute blocks in the backward pass to save memory.
        **block_cfg: Further arguments of :class:`FocalBlock`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        geometries: Sequence[FocalGeometry],
        drop_paths: Sequence[float],
        downsample: PatchEmbed | None = None,
        with_cp: bool = False,
        **block_cfg,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            FocalBlock(dim, num_heads, geometry, drop_path=rate, **block_cfg)
            for geometry, rate in zip(geometries, drop_paths, strict=True)
        )
        self.downsample = downsample
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, H, W, C)`` -> this stage's map and the next stage's input."""
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        if self.downsample is None:
            return x, x
        return x, self.downsample(x.permute(0, 3, 1, 2))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _require(condition: bool, name: str, allowed: str, value: object) -> None:
    if not condition:
        raise ValueError(f'{name} must be {allowed}, got {value!r}')


def _ints(name: str, value: object, allowed: str) -> tuple[int, ...]:
    """A sequence of ints as a tuple."""
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
    _require(is_sequence and all(map(_is_int, value)), name, allowed, value)
    return tuple(value)


def _per_stage(name: str, value: int | Sequence[int]) -> tuple[int, ...]:
    """An argument given per stage; a single int serves all four."""
    allowed = 'an int or four ints, one per stage'
    values = (value,) * 4 if _is_int(value) else _ints(name, value, allowed)
    _require(len(values) == 4, name, allowed, value)
    return values


def _block_geometry(
    geometry: FocalGeometry, index: int, expand_layer: str, use_shift: bool
) -> FocalGeometry:
    """Geometry of a stage's block: which parity looks beyond its window, which is shifted."""
    parity = ('even', 'odd')[index % 2]
    return replace(
        geometry,
        expand_size=0 if expand_layer == parity else geometry.expand_size,
        shift_size=geometry.window_size // 2 if use_shift and parity == 'odd' else 0,
    )


def _init_linear(module: nn.Module) -> None:
    """Initialise linear layers, pooling included, as the released code does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    _require(value in allowed, name, f'one of {", ".join(allowed)}', value)


@MODELS.register_module()
class FocalTransformer(BaseModule):
    """Focal Transformer backbone for classification, detection and segmentation.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, ``'large'`` (paper, table 1; large: width 192),
            or a dict with ``embed_dims``, ``depths`` (four) and ``num_heads`` (four).
        in_channels: Channels of the image.
        window_size: Window side in tokens, one int or one per stage.
        focal_levels: Levels per stage, the fine one included; ``2^(level - 2) <= window``.
        focal_windows: Side of the coarse region per stage, in windows; odd. The paper uses
            (7, 5, 3, 1) for 224-pixel classification and (15, 13, 9, 7) for detection.
        expand_sizes: How far fine attention looks beyond the window, per stage, 0 to the window.
        expand_layer: Blocks that look beyond their window: ``'all'``, or all but those of
            ``'even'`` or ``'odd'`` index.
        pool_method: ``'fc'`` (the paper's), ``'conv'``, ``'mean'``, ``'max'``, or ``'none'`` for
            no coarse level.
        use_conv_embed: Overlapping convolutions as patch embedding.
        use_shift: Shift the windows of odd blocks by half a window, as Swin does.
        use_pre_norm: GroupNorm before each downsampling convolution.
        layer_scale_init: Initial residual scale (the released code uses 1e-4); None for none.
        abs_pos_embed_size: Token grid ``(rows, columns)``, or one side, of an absolute position
            embedding, resized bicubically to the input's; None for none.
        mlp_ratio: Hidden over outer channels of the MLPs.
        qkv_bias: Bias of queries, keys and values.
        qk_scale: Replaces ``head_dim ** -0.5``; None, False and 0 keep it.
        drop_rate: Dropout after the position embedding, the projections and the MLP layers.
        attn_drop_rate: Dropout on attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        out_indices: Stages whose maps are returned, rising. Later stages do not run.
        frozen_stages: Parameters frozen from construction on: -1 none, 0 the stem, i the stem and
            the first i stages.
        norm_eval: Keep normalisation layers in evaluation mode while training.
        with_cp: Recompute blocks in the backward pass to save memory.
        attn_impl: Back end of attention, see :func:`mmfocal.ops.focal_attention.focal_attention`.
        init_cfg: MMEngine initialisation, e.g. ``dict(type='FocalPretrained', checkpoint=...)``.

    Raises:
        ValueError: If an argument makes no sense; names it and what is allowed.
    """

    arch_zoo = {
        'tiny': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
        'small': dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
        'base': dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
        'large': dict(embed_dims=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
    }

    def __init__(
        self,
        arch: str | dict = 'tiny',
        in_channels: int = 3,
        window_size: int | Sequence[int] = 7,
        focal_levels: Sequence[int] = (2, 2, 2, 2),
        focal_windows: Sequence[int] = (7, 5, 3, 1),
        expand_sizes: Sequence[int] = (3, 3, 3, 0),
        expand_layer: str = 'all',
        pool_method: str = 'fc',
        use_conv_embed: bool = False,
        use_shift: bool = False,
        use_pre_norm: bool = False,
        layer_scale_init: float | None = None,
        abs_pos_embed_size: int | tuple[int, int] | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        attn_impl: str = 'auto',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        embed_dims, self.depths, num_heads = self._parse_arch(arch)
        self.num_features = [embed_dims * 2**stage for stage in range(4)]
        self.out_indices = self._parse_out_indices(out_indices)
        _require(_is_int(in_channels) and in_channels > 0, 'in_channels', 'positive', in_channels)
        _require(frozen_stages in range(-1, 5), 'frozen_stages', 'an int in -1..4', frozen_stages)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        _check_choice('expand_layer', expand_layer, EXPAND_LAYERS)
        _check_choice('pool_method', pool_method, POOL_METHODS)
        check_impl(attn_impl)
        for name, rate in dict(
            drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate
        ).items():
            _require(_is_number(rate) and 0 <= rate < 1, name, 'a number in [0, 1)', rate)
        self._check_scales(mlp_ratio, qk_scale, layer_scale_init)

        self.patch_embed = PatchEmbed(in_channels, embed_dims, 4, use_conv_embed)
        self.absolute_pos_embed = self._make_pos_embed(abs_pos_embed_size)
        self.pos_drop = nn.Dropout(drop_rate)
        if pool_method == 'none':
            focal_levels = 1
        geometries = self._stage_geometries(window_size, focal_levels, focal_windows, expand_sizes)
        block_cfg = dict(
            pool_method=pool_method,
            mlp_ratio=mlp_ratio,
            drop=drop_rate,
            layer_scale_init=layer_scale_init,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            attn_drop=attn_drop_rate,
            impl=attn_impl,
        )
        drop_paths = torch.linspace(0, drop_path_rate, sum(self.depths), device='cpu')
        drop_paths = [rates.tolist() for rates in drop_paths.split(self.depths)]
        self.layers = nn.ModuleList()
        for stage, dim in enumerate(self.num_features):
            block_geometries = [
                _block_geometry(geometries[stage], index, expand_layer, use_shift)
                for index in range(self.depths[stage])
            ]
            downsample = None
            if stage < 3:
                downsample = PatchEmbed(dim, 2 * dim, 2, use_conv_embed, use_pre_norm)
            self.layers.append(
                FocalStage(
                    dim,
                    num_heads[stage],
                    block_geometries,
                    drop_paths[stage],
                    downsample,
                    with_cp,
                    **block_cfg,
                )
            )
        for stage in self.out_indices:
            self.add_module(f'norm{stage}', nn.LayerNorm(self.num_features[stage]))
        self.apply(_init_linear)
        self._freeze_stages()

    def _parse_arch(self, arch: str | dict) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """Width, depths and heads of ``arch``, checked."""
        if isinstance(arch, str):
            _check_choice('arch', arch, tuple(self.arch_zoo))
            arch = self.arch_zoo[arch]
        keys = ('embed_dims', 'depths', 'num_heads')
        is_complete = isinstance(arch, dict) and set(arch) == set(keys)
        _require(is_complete, 'arch', f'a name or a dict of {", ".join(keys)}', arch)
        width = arch['embed_dims']
        _require(_is_int(width) and width > 0, 'arch.embed_dims', 'a positive int', width)
        depths, heads = (
            _ints(f'arch.{name}', arch[name], 'four positive ints') for name in keys[1:]
        )
        for name, values in zip(keys[1:], (depths, heads), strict=True):
            is_valid = len(values) == 4 and min(values) > 0
            _require(is_valid, f'arch.{name}', 'four positive ints', values)
        for stage, stage_heads in enumerate(heads):
            dim = width * 2**stage
            allowed = f'a divisor of the {dim} channels of its stage'
            _require(dim % stage_heads == 0, f'arch.num_heads[{stage}]', allowed, stage_heads)
        return width, depths, heads

    @staticmethod
    def _parse_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
        allowed = 'a sequence of rising stages in 0..3'
        indices = _ints('out_indices', out_indices, allowed)
        is_valid = indices and set(indices) <= set(range(4)) and sorted({*indices}) == [*indices]
        _require(bool(is_valid), 'out_indices', allowed, indices)
        return indices

    def _check_scales(
        self, mlp_ratio: float, qk_scale: float | None, layer_scale_init: float | None
    ) -> None:
        least = 1 / self.num_features[0]
        is_valid = _is_number(mlp_ratio) and mlp_ratio >= least
        _require(
            is_valid, 'mlp_ratio', f'a number of at least 1 / embed_dims = {least}', mlp_ratio
        )
        is_valid = not qk_scale or (_is_number(qk_scale) and qk_scale > 0)
        _require(is_valid, 'qk_scale', 'positive, or None, False or 0 for the default', qk_scale)
        is_valid = layer_scale_init is None or _is_number(layer_scale_init)
        _require(is_valid, 'layer_scale_init', 'a number or None', layer_scale_init)

    def _make_pos_embed(self, size: int | Sequence[int] | None) -> nn.Parameter | None:
        """Absolute position embedding ``(1, N, C)`` of a token grid."""
        if size is None:
            return None
        allowed = 'an int or (rows, columns), positive'
        grid = (size, size) if _is_int(size) else _ints('abs_pos_embed_size', size, allowed)
        _require(len(grid) == 2 and min(grid) > 0, 'abs_pos_embed_size', allowed, size)
        self.pos_embed_grid = grid
        embed = torch.empty(1, grid[0] * grid[1], self.num_features[0])
        return nn.Parameter(nn.init.trunc_normal_(embed, std=0.02))

    @staticmethod
    def _stage_geometries(
        window_size: int | Sequence[int],
        focal_levels: int | Sequence[int],
        focal_windows: int | Sequence[int],
        expand_sizes: int | Sequence[int],
    ) -> list[FocalGeometry]:
        arguments = dict(
            window_size=('window_size', window_size),
            focal_level=('focal_levels', focal_levels),
            focal_window=('focal_windows', focal_windows),
            expand_size=('expand_sizes', expand_sizes),
        )
        settings = {field: _per_stage(*argument) for field, argument in arguments.items()}
        geometries = []
        for stage in range(4):
            try:
                geometry = FocalGeometry(**{k: values[stage] for k, values in settings.items()})
            except ValueError as error:
                field, message = str(error).split(maxsplit=1)
                raise ValueError(f'{arguments[field][0]}[{stage}] {message}') from error
            geometries.append(geometry)
        return geometries

    def _freeze_stages(self) -> None:
        """Stop gradients into, and dropout in, the stem and the first stages.

        Stages behind the last output never run; without gradients they are no unused parameters
        for distributed training to complain about.
        """
        last = self.out_indices[-1]
        unused = [*self.layers[last + 1 :], self.layers[last].downsample]
        for module in filter(None, unused):
            module.requires_grad_(False)
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, self.pos_drop, *self.layers[: self.frozen_stages]]
        frozen += [
            getattr(self, f'norm{stage}')
            for stage in self.out_indices
            if stage < self.frozen_stages
        ]
        for module in frozen:
            module.eval().requires_grad_(False)
        if self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(False)

    def train(self, mode: bool = True) -> 'FocalTransformer':
        """Set the mode, keeping frozen stages and, with ``norm_eval``, norms in evaluation."""
        super().train(mode)
        self._freeze_stages()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                    module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for layer-wise learning rate decay.

        Args:
            param_name: Name of the parameter, with ``prefix``.
            prefix: What the backbone's parameters are called under, e.g. ``'backbone.'``.

        Returns:
            Depth (0: the stem; then one per block, a downsampling counting with the block before
            it; the last: all else) and the number of depths.
        """
        num_depths = sum(self.depths) + 2
        name = param_name.removeprefix(prefix).split('.')
        if not param_name.startswith(prefix):
            return num_depths - 1, num_depths
        if name[0] in ('patch_embed', 'absolute_pos_embed'):
            return 0, num_depths
        if name[0] != 'layers':
            return num_depths - 1, num_depths
        stage = int(name[1])
        block = int(name[3]) if name[2] == 'blocks' else self.depths[stage] - 1
        return sum(self.depths[:stage]) + block + 1, num_depths

    def _add_pos_embed(self, x: Tensor) -> Tensor:
        embed = self.absolute_pos_embed.unflatten(1, self.pos_embed_grid).permute(0, 3, 1, 2)
        if embed.shape[-2:] != x.shape[1:3]:
            embed = F.interpolate(embed, x.shape[1:3], mode='bicubic', align_corners=False)
        return x + embed.permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extract features.

        Args:
            x: Images ``(B, in_channels, H, W)`` of any size.

        Returns:
            One map ``(B, C_i, H_i, W_i)`` per stage i of ``out_indices``, with
            ``C_i = embed_dims * 2^i`` and strides 4, 8, 16, 32.
        """
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            x = self._add_pos_embed(x)
        x = self.pos_drop(x)
        outs = []
        for stage, layer in enumerate(self.layers[: self.out_indices[-1] + 1]):
            out, x = layer(x)
            if stage in self.out_indices:
                out = getattr(self, f'norm{stage}')(out)
                outs.append(out.permute(0, 3, 1, 2).contiguous())
        return tuple(outs)
