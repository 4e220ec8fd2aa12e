# SPDX-License-Identifier: Apache-2.0
"""Focal Transformer backbone.

`Focal Self-attention for Local-Global Interactions in Vision Transformers
<https://arxiv.org/abs/2107.00641>`_ (NeurIPS 2021).

Differences from the released classification code (https://github.com/microsoft/Focal-Transformer):

* inputs of any size are accepted: maps are padded at run time, and no module stores a resolution;
* window, expand and shift sizes are configured, not reduced to the map's size. For 224-pixel
  checkpoints set ``expand_sizes=(3, 3, 3, 0)``;
* one output norm per stage (``norm0`` ... ``norm3``) instead of a final ``norm``, and no head;
* attention has several backends (``mmfocal.ops.focal_attention``), and stages may run stock blocks
  through a fast path (``fast_path``);
* there are no index buffers, so checkpoints contain parameters only.

Shapes: ``B`` batch, ``H, W`` token map of a stage, ``C`` channels, ``h`` heads, ``T`` all tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmfocal import compat
from mmfocal.ops.focal_attention import FocalBias, FocalGeometry, FocalInputs, focal_attention

from .arguments import check_options, parse_arch, parse_grid, parse_out_indices, stage_geometries
from .fast_path import call_block, register_stock
from .layers import (
    DropPath,
    Mlp,
    convolve,
    init_linear,
    make_pool_layer,
    pad_or_crop,
    pad_to_multiple,
    pool_cells,
)


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
        return self.norm(convolve(x, self.proj, self.stride))


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
        impl: Backend of the attention.
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
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * w - 1) ** 2, num_heads))
        self.relative_position_bias_table_to_neighbors = None
        if geometry.expand_size:
            self.relative_position_bias_table_to_neighbors = nn.Parameter(
                torch.empty(1, num_heads, w * w, geometry.num_neighbors)
            )
        self.relative_position_bias_table_to_windows = nn.ParameterList(
            nn.Parameter(torch.empty(num_heads, (w + region.side - 1) ** 2))
            for region in geometry.regions[1:]
        )
        self.reset_tables()

    @property
    def bias(self) -> FocalBias:
        """Relative position bias tables."""
        return FocalBias(
            self.relative_position_bias_table,
            self.relative_position_bias_table_to_neighbors,
            tuple(self.relative_position_bias_table_to_windows),
        )

    def reset_tables(self) -> None:
        """Initialize the tables as in the released code: window keys zero, others random."""
        nn.init.zeros_(self.bias.window)
        if self.bias.neighbors is not None:
            nn.init.trunc_normal_(self.bias.neighbors, std=0.02)
        for table in self.bias.coarse:
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, tokens: Tensor, map_size: tuple[int, int], shift: int = 0) -> Tensor:
        """Apply focal attention.

        Args:
            tokens: ``(B, T, C)``: the tokens of the map, row-major, then of each coarse map.
            map_size: ``(H, W)``, multiples of the window.
            shift: Number of tokens that the map is rolled by.

        Returns:
            ``(B, H, W, C)``.
        """
        inputs = FocalInputs(
            qkv=self.qkv(tokens),
            map_size=map_size,
            bias=self.bias,
            geometry=self.geometry,
            scale=self.scale,
            shift=shift,
            dropout_p=self.attn_drop if self.training else 0.0,
        )
        return self.proj_drop(self.proj(focal_attention(inputs, self.impl)))


class FocalBlock(nn.Module):
    """Focal attention and MLP, each with LayerNorm before and a residual around it.

    Args:
        dim: Channels C.
        num_heads: Heads h.
        geometry: The key set of a window.
        shift_size: Number of tokens that the map is rolled by, if it is larger than a window.
        pool_method: Pooling to coarse tokens.
        mlp_ratio: Hidden channels of the MLP, relative to C.
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
        shift_size: int = 0,
        pool_method: str = 'fc',
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        layer_scale_init: float | None = None,
        **attn_cfg: Any,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.shift_size = shift_size
        self.pool_method = pool_method
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

    def effective_shift(self, height: int, width: int) -> int:
        """Return the shift for a map: 0 if the map is not larger than a window."""
        return 0 if min(height, width) <= self.geometry.window_size else self.shift_size

    def _pool(self, x: Tensor) -> Tensor:
        """Padded map ``(B, H, W, C)`` -> tokens ``(B, T, C)`` of it and of its coarse maps."""
        maps, sizes = [x], self.geometry.map_sizes(*x.shape[1:3])
        for level, pool in enumerate(self.pool_layers):
            cell = self.geometry.cell_size(level)
            maps.append(pool_cells(x, pool, self.pool_method, cell, sizes[1 + level]))
        return torch.cat([level.flatten(1, 2) for level in maps], dim=1)

    def _attend(self, x: Tensor) -> Tensor:
        """Pad, roll, pool, attend, roll back and crop: ``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        _, height, width, _ = x.shape
        shift = self.effective_shift(height, width)
        x = pad_to_multiple(x, self.geometry.window_size)
        if shift:
            x = torch.roll(x, (-shift, -shift), dims=(1, 2))
        x = self.attn(self._pool(x), x.shape[1:3], shift)
        if shift:
            x = torch.roll(x, (shift, shift), dims=(1, 2))
        return pad_or_crop(x, height, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        attended = self._attend(self.norm1(x))
        if self.gamma_1 is not None:
            attended = self.gamma_1 * attended
        x = x + self.drop_path(attended)
        mixed = self.mlp(self.norm2(x))
        if self.gamma_2 is not None:
            mixed = self.gamma_2 * mixed
        return x + self.drop_path(mixed)


register_stock(FocalAttention, FocalBlock)


class FocalStage(nn.Module):
    """Blocks of one resolution and the downsampling that follows them.

    Args:
        dim: Channels C.
        num_heads: Heads h.
        geometry: The key set of a window.
        drop_paths: Stochastic depth rate of each block.
        expand_layer: Blocks that attend to neighbor keys: ``'all'``, or all except those of
            ``'even'`` or ``'odd'`` index.
        use_shift: Shift the windows of odd blocks by half a window.
        with_cp: Recompute blocks in the backward pass to save memory.
        **block_cfg: Further arguments of :class:`FocalBlock`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        geometry: FocalGeometry,
        drop_paths: Sequence[float],
        expand_layer: str = 'all',
        use_shift: bool = False,
        with_cp: bool = False,
        **block_cfg: Any,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for index, rate in enumerate(drop_paths):
            parity = ('even', 'odd')[index % 2]
            expand_size = 0 if expand_layer == parity else geometry.expand_size
            shift_size = geometry.window_size // 2 if use_shift and parity == 'odd' else 0
            block_geometry = replace(geometry, expand_size=expand_size)
            args = (dim, num_heads, block_geometry, shift_size)
            self.blocks.append(FocalBlock(*args, drop_path=rate, **block_cfg))
        self.downsample: PatchEmbed | None = None  # set by the backbone, except in the last stage
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``, before downsampling."""
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(call_block, block, x, use_reentrant=False)
            else:
                x = call_block(block, x)
        return x


@MODELS.register_module()
class FocalTransformer(BaseModule):  # type: ignore[misc]  # MMEngine is not typed
    """Focal Transformer backbone for classification, detection and segmentation.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, ``'large'`` (paper, table 1; large: width 192),
            or a dict with ``embed_dims``, ``depths`` (four) and ``num_heads`` (four).
        in_channels: Channels of the image.
        window_size: Window side in tokens, one int or one per stage.
        focal_levels: Levels per stage, the fine one included; ``2^(level - 2) <= window``.
        focal_windows: Side of the coarse region per stage, in windows; odd. The paper uses
            (7, 5, 3, 1) for 224-pixel classification and (15, 13, 9, 7) for detection.
        expand_sizes: Number of tokens beyond the window that a query attends to, per stage, 0 to
            ``window_size``.
        expand_layer: Blocks that attend to neighbor keys: ``'all'``, or all except those of
            ``'even'`` or ``'odd'`` index.
        pool_method: ``'fc'`` (the paper's), ``'conv'``, ``'mean'``, ``'max'``, or ``'none'`` for
            no coarse level.
        use_conv_embed: Overlapping convolutions as patch embedding.
        use_shift: Shift the windows of odd blocks by half a window, as Swin does.
        use_pre_norm: GroupNorm before each downsampling convolution.
        layer_scale_init: Initial residual scale (the released code uses 1e-4); None for none.
        abs_pos_embed_size: Token grid ``(rows, columns)``, or one side, of an absolute position
            embedding, which is resized bicubically to the grid of the input; None for none.
        mlp_ratio: Hidden channels of the MLPs, relative to their input.
        qkv_bias: Add a learnable bias to queries, keys and values.
        qk_scale: Replaces ``head_dim ** -0.5``; None, False and 0 keep it.
        drop_rate: Dropout after the position embedding, the projections and the MLP layers.
        attn_drop_rate: Dropout on attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        out_indices: Stages whose maps are returned, ascending. Later stages do not run.
        frozen_stages: Parameters frozen from construction on: -1 none, 0 the stem, i the stem and
            the first i stages.
        norm_eval: Keep normalization layers in evaluation mode while training.
        with_cp: Recompute blocks in the backward pass to save memory.
        attn_impl: Backend of attention, see :func:`mmfocal.ops.focal_attention.focal_attention`.
        init_cfg: MMEngine initialization, e.g. ``dict(type='FocalPretrained', checkpoint=...)``.

    Raises:
        ValueError: If an argument is invalid; names the argument and the allowed values.
    """

    arch_zoo = {
        'tiny': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
        'small': dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
        'base': dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
        'large': dict(embed_dims=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
    }

    def __init__(
        self,
        arch: str | dict[str, Any] = 'tiny',
        in_channels: int = 3,
        window_size: int | Sequence[int] = 7,
        focal_levels: int | Sequence[int] = (2, 2, 2, 2),
        focal_windows: int | Sequence[int] = (7, 5, 3, 1),
        expand_sizes: int | Sequence[int] = (3, 3, 3, 0),
        expand_layer: str = 'all',
        pool_method: str = 'fc',
        use_conv_embed: bool = False,
        use_shift: bool = False,
        use_pre_norm: bool = False,
        layer_scale_init: float | None = None,
        abs_pos_embed_size: int | Sequence[int] | None = None,
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
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        embed_dims, self.depths, num_heads = parse_arch(arch, self.arch_zoo)
        options = dict(in_channels=in_channels, expand_layer=expand_layer, pool_method=pool_method)
        options |= dict(mlp_ratio=mlp_ratio, qk_scale=qk_scale, layer_scale_init=layer_scale_init)
        options |= dict(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, attn_impl=attn_impl)
        options |= dict(drop_path_rate=drop_path_rate, frozen_stages=frozen_stages)
        check_options(options, embed_dims)
        self.num_features = [embed_dims * 2**stage for stage in range(4)]
        self.out_indices = parse_out_indices(out_indices)
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval

        self.patch_embed = PatchEmbed(in_channels, embed_dims, 4, use_conv_embed)
        self.absolute_pos_embed = self._make_pos_embed(abs_pos_embed_size)
        self.pos_drop = nn.Dropout(drop_rate)
        focal_levels = 1 if pool_method == 'none' else focal_levels
        geometries = stage_geometries(window_size, focal_levels, focal_windows, expand_sizes)
        drop_paths = torch.linspace(0, drop_path_rate, sum(self.depths), device='cpu')
        cfg: dict[str, Any] = dict(expand_layer=expand_layer, use_shift=use_shift, with_cp=with_cp)
        cfg |= dict(pool_method=pool_method, mlp_ratio=mlp_ratio, drop=drop_rate, impl=attn_impl)
        cfg |= dict(qkv_bias=qkv_bias, qk_scale=qk_scale, layer_scale_init=layer_scale_init)
        cfg |= dict(attn_drop=attn_drop_rate)
        self.layers = nn.ModuleList()
        stages = zip(self.num_features, num_heads, geometries, drop_paths.split(self.depths))
        for stage, (dim, heads, geometry, rates) in enumerate(stages):
            layer = FocalStage(dim, heads, geometry, rates.tolist(), **cfg)
            if stage < 3:
                layer.downsample = PatchEmbed(dim, 2 * dim, 2, use_conv_embed, use_pre_norm)
            self.layers.append(layer)
        for stage in self.out_indices:
            self.add_module(f'norm{stage}', nn.LayerNorm(self.num_features[stage]))
        self.apply(init_linear)
        self._freeze_stages()

    def _make_pos_embed(self, size: int | Sequence[int] | None) -> nn.Parameter | None:
        """Return the absolute position embedding ``(1, N, C)`` of a token grid."""
        if size is None:
            return None
        self.pos_embed_grid = parse_grid('abs_pos_embed_size', size)
        rows, cols = self.pos_embed_grid
        embed = torch.empty(1, rows * cols, self.num_features[0])
        return nn.Parameter(nn.init.trunc_normal_(embed, std=0.02))

    def _freeze_stages(self) -> None:
        """Freeze the stem and the first stages: no gradients, evaluation mode.

        Stages after the last output never run. They are frozen too, because distributed training
        does not accept unused parameters.
        """
        last = self.out_indices[-1]
        unused = [*self.layers[last + 1 :], self.layers[last].downsample]
        for module in filter(None, unused):
            module.requires_grad_(False)
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, self.pos_drop, *self.layers[: self.frozen_stages]]
        frozen += [getattr(self, f'norm{i}') for i in self.out_indices if i < self.frozen_stages]
        for module in frozen:
            module.eval().requires_grad_(False)
        if self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(False)

    def train(self, mode: bool = True) -> 'FocalTransformer':
        """Set the mode; frozen stages and, with ``norm_eval``, norms stay in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                    module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the depth of a parameter, for layer-wise learning rate decay.

        Args:
            param_name: Name of the parameter, with ``prefix``.
            prefix: Prefix of the backbone's parameters, e.g. ``'backbone.'``.

        Returns:
            Depth of the parameter and number of depths. The stem has depth 0. Each block has its
            own depth, shared by the downsampling after it. Other parameters have the last depth.
        """
        num_depths = sum(self.depths) + 2
        name = param_name.removeprefix(prefix).split('.')
        is_own = param_name.startswith(prefix)
        if is_own and name[0] in ('patch_embed', 'absolute_pos_embed'):
            return 0, num_depths
        if not is_own or name[0] != 'layers':
            return num_depths - 1, num_depths
        stage = int(name[1])
        block = int(name[3]) if name[2] == 'blocks' else self.depths[stage] - 1
        return sum(self.depths[:stage]) + block + 1, num_depths

    def _add_pos_embed(self, x: Tensor) -> Tensor:
        if self.absolute_pos_embed is None:
            return x
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
        compat.check_compiler()
        x = self.pos_drop(self._add_pos_embed(self.patch_embed(x)))
        outs, last = [], self.out_indices[-1]
        for stage in range(last + 1):  # PyTorch 2.6 cannot export slices of layers
            layer = cast('FocalStage', self.layers[stage])
            x = layer(x)
            if stage in self.out_indices:
                out = getattr(self, f'norm{stage}')(x)
                outs.append(out.permute(0, 3, 1, 2).contiguous())
            if stage < last and layer.downsample is not None:
                x = layer.downsample(x.permute(0, 3, 1, 2))
        return tuple(outs)
