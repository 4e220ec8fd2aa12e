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

from mmfocal.ops.focal_attention import FocalBias, FocalGeometry, focal_attention
from mmfocal.ops.focal_attention.api import check_impl

POOL_METHODS = ('fc', 'conv', 'mean', 'max', 'none')
EXPAND_LAYERS = ('all', 'even', 'odd')


def missing(size: int, divisor: int) -> int:
    """What ``size`` lacks to the next multiple of ``divisor``.

    Not ``-size % divisor``: a symbolic size plus this simplifies, so dynamic shapes compile.
    """
    return (size + divisor - 1) // divisor * divisor - size


def pad_to_multiple(x: Tensor, divisor: int) -> Tensor:
    """Zero-pad ``(B, C, H, W)`` on the bottom and right to multiples of ``divisor``."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, missing(width, divisor), 0, missing(height, divisor)))


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch per sample while training."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:.3g}'


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
        x = pad_to_multiple(self.pre_norm(x), self.stride)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden_dim: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def make_pool_layer(method: str, dim: int, cell: int) -> nn.Module:
    """What turns a ``cell x cell`` patch of tokens into one coarse token (section 3.2.1).

    ``'fc'`` is the paper's: one linear layer over the positions, shared by all channels.
    """
    layers = {
        'fc': lambda: nn.Linear(cell * cell, 1),
        'conv': lambda: nn.Conv2d(dim, dim, cell, stride=cell, groups=dim),
        'mean': lambda: nn.AvgPool2d(cell),
        'max': lambda: nn.MaxPool2d(cell),
    }
    return layers[method]()


def pool_cells(x: Tensor, pool: nn.Module, cell: int, grid: tuple[int, int]) -> Tensor:
    """Pool a token map to a grid of coarse tokens.

    What does not divide into cells (``w = 7`` has no 2x2 cells of whole tokens) is trimmed from
    the border of the map, as evenly as possible.

    Args:
        x: ``(B, H, W, C)``.
        pool: A layer of :func:`make_pool_layer`.
        cell: Side of a cell, in tokens.
        grid: Cells down and across.

    Returns:
        ``(B, *grid, C)``.
    """
    rows, cols = grid
    top, left = (x.shape[1] - rows * cell) // 2, (x.shape[2] - cols * cell) // 2
    x = x[:, top : top + rows * cell, left : left + cols * cell]
    if not isinstance(pool, nn.Linear):
        return pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    x = x.unflatten(2, (cols, cell)).unflatten(1, (rows, cell))  # (B, rows, cell, cols, cell, C)
    x = x.permute(0, 1, 3, 5, 2, 4).flatten(4)  # (B, rows, cols, C, cell * cell)
    return pool(x).squeeze(-1)


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
            nn.Parameter(torch.empty(num_heads, (w + geometry.region_size(level) - 1) ** 2))
            for level in geometry.coarse_levels
        )
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
            tuple(F.linear(level, kv_weight, kv_bias) for level in coarse),
            self.bias,
            geometry,
            scale=self.scale,
            dropout_p=self.attn_drop if self.training else 0.0,
            impl=self.impl,
        )
        return self.proj_drop(self.proj(out))


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

    def _attend(self, x: Tensor) -> Tensor:
        """Pad, roll, pool, attend, and undo: ``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        _, height, width, _ = x.shape
        geometry, w = self.geometry, self.geometry.window_size
        if geometry.shift_size and min(height, width) <= w:
            geometry = replace(geometry, shift_size=0)
        x = F.pad(x, (0, 0, 0, missing(width, w), 0, missing(height, w)))
        if geometry.shift_size:
            x = torch.roll(x, (-geometry.shift_size,) * 2, dims=(1, 2))
        coarse = [
            pool_cells(
                x, pool, geometry.cell_size(k), tuple(2**k * (n // w) for n in x.shape[1:3])
            )
            for k, pool in enumerate(self.pool_layers)
        ]
        x = self.attn(x, coarse, geometry)
        if geometry.shift_size:
            x = torch.roll(x, (geometry.shift_size,) * 2, dims=(1, 2))
        return x[:, :height, :width]

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


class FocalStage(nn.Module):
    """Blocks of one resolution and the downsampling that follows them.

    Args:
        blocks: The blocks.
        downsample: Makes the next stage's map; None in the last stage.
        with_cp: Recompute blocks in the backward pass to save memory.
    """

    def __init__(
        self, blocks: Sequence[FocalBlock], downsample: PatchEmbed | None, with_cp: bool = False
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, H, W, C)`` -> this stage's map and the next stage's input."""
        for block in self.blocks:
            if self.with_cp and x.requires_grad:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        if self.downsample is None:
            return x, x
        return x, self.downsample(x.permute(0, 3, 1, 2))


def _per_stage(name: str, value: int | Sequence[int]) -> tuple[int, ...]:
    """Expand an argument given per stage; a single int serves all four."""
    values = (value,) * 4 if isinstance(value, int) else tuple(value)
    if len(values) != 4 or not all(isinstance(v, int) for v in values):
        raise ValueError(f'{name} must be an int or four ints, one per stage, got {value!r}')
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
    if value not in allowed:
        raise ValueError(f'{name} must be one of {", ".join(allowed)}, got {value!r}')


def _check_rate(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f'{name} must lie in [0, 1), got {value!r}')


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
        out_indices: Stages whose maps are returned.
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
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self._check_indices()
        _check_choice('expand_layer', expand_layer, EXPAND_LAYERS)
        _check_choice('pool_method', pool_method, POOL_METHODS)
        check_impl(attn_impl)
        _check_rate('drop_rate', drop_rate)
        _check_rate('attn_drop_rate', attn_drop_rate)
        _check_rate('drop_path_rate', drop_path_rate)
        if mlp_ratio <= 0:
            raise ValueError(f'mlp_ratio must be positive, got {mlp_ratio!r}')

        self.patch_embed = PatchEmbed(in_channels, embed_dims, 4, use_conv_embed)
        self.absolute_pos_embed = self._make_pos_embed(abs_pos_embed_size)
        self.pos_drop = nn.Dropout(drop_rate)
        if pool_method == 'none':
            focal_levels = (1, 1, 1, 1)
        geometries = self._stage_geometries(window_size, focal_levels, focal_windows, expand_sizes)
        drop_paths = torch.linspace(0, drop_path_rate, sum(self.depths), device='cpu').tolist()
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
        self.layers = nn.ModuleList()
        for dim, depth, heads, geometry in zip(
            self.num_features, self.depths, num_heads, geometries, strict=True
        ):
            blocks = [
                FocalBlock(
                    dim,
                    heads,
                    _block_geometry(geometry, index, expand_layer, use_shift),
                    drop_path=drop_paths.pop(0),
                    **block_cfg,
                )
                for index in range(depth)
            ]
            last = len(self.layers) == 3
            downsample = (
                None if last else PatchEmbed(dim, 2 * dim, 2, use_conv_embed, use_pre_norm)
            )
            self.layers.append(FocalStage(blocks, downsample, with_cp))
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
        if set(arch) != set(keys):
            raise ValueError(f'arch must have the keys {", ".join(keys)}, got {", ".join(arch)}')
        width, depths, heads = arch['embed_dims'], tuple(arch['depths']), tuple(arch['num_heads'])
        for name, values in dict(depths=depths, num_heads=heads).items():
            if len(values) != 4 or min(values) < 1:
                raise ValueError(f'arch.{name} must be four positive ints, got {values}')
        for stage, stage_heads in enumerate(heads):
            if width * 2**stage % stage_heads:
                raise ValueError(
                    f'arch.num_heads must divide the channels of its stage: stage {stage} has '
                    f'{width * 2**stage} channels, got {stage_heads} heads'
                )
        return width, depths, heads

    def _check_indices(self) -> None:
        if not self.out_indices or any(
            stage not in range(4) or self.out_indices.count(stage) > 1
            for stage in self.out_indices
        ):
            raise ValueError(f'out_indices must be distinct stages 0..3, got {self.out_indices}')
        if self.frozen_stages not in range(-1, 5):
            raise ValueError(f'frozen_stages must lie in -1..4, got {self.frozen_stages!r}')

    def _make_pos_embed(self, size: int | Sequence[int] | None) -> nn.Parameter | None:
        """Absolute position embedding ``(1, N, C)`` of a token grid."""
        if size is None:
            return None
        grid = (size, size) if isinstance(size, int) else tuple(size)
        if len(grid) != 2 or min(grid) < 1:
            raise ValueError(f'abs_pos_embed_size must be an int or (rows, columns), got {size!r}')
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
        settings = dict(
            window_size=_per_stage('window_size', window_size),
            focal_level=_per_stage('focal_levels', focal_levels),
            focal_window=_per_stage('focal_windows', focal_windows),
            expand_size=_per_stage('expand_sizes', expand_sizes),
        )
        geometries = []
        for stage in range(4):
            try:
                geometry = FocalGeometry(**{k: values[stage] for k, values in settings.items()})
            except ValueError as error:
                raise ValueError(f'stage {stage}: {error}') from error
            geometries.append(geometry)
        return geometries

    def _freeze_stages(self) -> None:
        """Stop gradients into, and dropout in, the stem and the first stages."""
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
        for stage, layer in enumerate(self.layers):
            out, x = layer(x)
            if stage in self.out_indices:
                out = getattr(self, f'norm{stage}')(out)
                outs.append(out.permute(0, 3, 1, 2).contiguous())
        return tuple(outs)
