# SPDX-License-Identifier: Apache-2.0
"""Attention weights of one query of a Focal Transformer as maps over the image.

The weights are computed here from the input of a block's attention, in the same way as in the
``reference`` backend, so models with any backend are supported. Weights of duplicate and wrapped
keys are summed at their position.

Shape legend: as in ``mmfocal.ops.focal_attention.geometry``.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmfocal.models import FocalTransformer
from mmfocal.ops.focal_attention.bias import combined_bias
from mmfocal.ops.focal_attention.geometry import FocalGeometry, key_index, key_mask, split_maps


class AttentionMap(NamedTuple):
    """Attention of one query, averaged over the selected heads.

    Attributes:
        levels: The fine level, then each coarse one: float ``(H, W)`` per token of the map, NaN
            where the level has no key; a coarse key covers all tokens of its cell.
        shares: Sum of the weights of each level; they add up to 1.
        window: Rows and columns of the query's window, as slices (of the map before any shift).
        query: Row and column of the query's token.
        stride: Pixels of the image per token.
    """

    levels: list[np.ndarray]
    shares: list[float]
    window: tuple[slice, slice]
    query: tuple[int, int]
    stride: int


class AttentionCall(NamedTuple):
    """Inputs of one attention layer.

    Attributes:
        tokens: ``(T, C)``: the tokens of the map, row-major, then of each coarse map.
        map_size: ``(H, W)``, padded to windows.
        shift: Number of tokens that the map is rolled by.
    """

    tokens: Tensor
    map_size: tuple[int, int]
    shift: int


def record_call(model: FocalTransformer, attention: nn.Module, image: Tensor) -> AttentionCall:
    """Run a model and record the inputs of one of its attention layers.

    Args:
        model: The backbone.
        attention: One of its ``FocalAttention`` layers.
        image: ``(3, rows, columns)``, normalized.
    """
    calls = []

    def keep(_: nn.Module, arguments: tuple) -> None:
        tokens, map_size, shift = arguments
        calls.append(AttentionCall(tokens[0], tuple(map_size), shift))

    handle = attention.register_forward_pre_hook(keep)
    try:
        with torch.no_grad():
            model.eval()(image[None])
    finally:
        handle.remove()
    return calls[0]


def attention_weights(attention: nn.Module, call: AttentionCall, window: int) -> Tensor:
    """Compute softmax of ``scale * q . k + bias + mask`` for all queries of one window.

    Args:
        attention: The layer.
        call: Inputs of the layer.
        window: Index of the window, row-major.

    Returns:
        ``(h, w*w, K)``, keys as in ``key_index``.
    """
    geometry, (height, width) = attention.geometry, call.map_size
    w, heads = geometry.window_size, attention.bias.window.shape[1]
    with torch.no_grad():
        index = key_index(geometry, height, width, call.tokens.device)[window]
        bias = combined_bias(attention.bias, geometry)
        mask = key_mask(geometry, height, width, call.shift, call.tokens.device)
        q, k, _ = attention.qkv(call.tokens).unflatten(-1, (3, heads, -1)).permute(1, 2, 0, 3)
        k = torch.cat([k, k.new_zeros(heads, 1, k.shape[-1])], dim=1)[:, index]
        place = torch.arange(height * width).view(height // w, w, width // w, w).transpose(1, 2)
        q = q[:, place.reshape(-1, w * w)[window]]
        logits = q @ k.transpose(-2, -1) * attention.scale + bias
        return (logits if mask is None else logits + mask[window]).softmax(dim=-1)


def _spread(
    cells: Tensor, geometry: FocalGeometry, level: int, map_size: tuple[int, int]
) -> np.ndarray:
    """Expand cells ``(rows, columns)`` to the tokens they cover: ``(H, W)``, NaN elsewhere."""
    cell = geometry.cell_size(level)
    tokens = cells.repeat_interleave(cell, 0).repeat_interleave(cell, 1).cpu().numpy()
    out = np.full(map_size, np.nan, np.float32)
    top, left = ((size - side) // 2 for size, side in zip(map_size, tokens.shape))
    out[top : top + tokens.shape[0], left : left + tokens.shape[1]] = tokens
    return out


def _level_maps(
    weights: Tensor, index: Tensor, geometry: FocalGeometry, map_size: tuple[int, int]
) -> list[np.ndarray]:
    """Sum the weights ``(K,)`` of keys at their positions ``index`` on each level's map."""
    sizes, places = geometry.map_sizes(*map_size), geometry.num_tokens(*map_size)
    sums = weights.new_zeros(places + 1).index_add_(0, index, weights)
    is_key = torch.zeros(places + 1, dtype=torch.bool).index_fill(0, index, True)
    shown = torch.where(is_key, sums, torch.nan)[None, :-1, None]
    fine, *coarse = (level[0, ..., 0] for level in split_maps(shown, sizes))
    levels = [fine.cpu().numpy()]
    levels += [_spread(cells, geometry, level, map_size) for level, cells in enumerate(coarse)]
    return levels


def attention_map(
    model: FocalTransformer,
    image: Tensor,
    query: tuple[int, int],
    stage: int = 0,
    block: int = 0,
    head: int | None = None,
) -> AttentionMap:
    """Compute the attention map of the query at a pixel.

    Args:
        model: The backbone.
        image: ``(3, rows, columns)``, normalized.
        query: Column and row (x, y) of a pixel.
        stage: 0 to 3.
        block: Index of the block in the stage.
        head: Index of the head; None for the mean of all.

    Returns:
        One map per level.

    Raises:
        ValueError: If pixel, stage, block or head does not exist; names the valid range.
    """
    layer, stride = _layer(model, stage, block), 4 * 2**stage
    heads = layer.bias.window.shape[1]
    rows, columns = image.shape[1:]
    _check('head', -1 if head is None else head, -1, heads - 1)
    _check('query x', query[0], 0, columns - 1)
    _check('query y', query[1], 0, rows - 1)
    call = record_call(model, layer, image)
    geometry, (height, width), shift = layer.geometry, call.map_size, call.shift
    w = geometry.window_size
    token = query[1] // stride, query[0] // stride
    row, column = (token[0] - shift) % height, (token[1] - shift) % width  # in the rolled map
    window = row // w * (width // w) + column // w
    weights = attention_weights(layer, call, window)[:, row % w * w + column % w]
    weights = weights.mean(0) if head is None else weights[head]
    index = key_index(geometry, height, width, weights.device)[window]
    levels = [
        np.roll(values, (shift, shift), (0, 1))
        for values in _level_maps(weights, index, geometry, call.map_size)
    ]
    parts = weights.split([region.side**2 for region in geometry.regions])
    shares = [part.sum().item() for part in parts]
    corner = row // w * w + shift, column // w * w + shift
    return AttentionMap(levels, shares, tuple(slice(c, c + w) for c in corner), token, stride)


def _layer(model: FocalTransformer, stage: int, block: int) -> nn.Module:
    _check('stage', stage, 0, model.out_indices[-1])
    _check('block', block, 0, len(model.layers[stage].blocks) - 1)
    return model.layers[stage].blocks[block].attn


def _check(name: str, value: int, least: int, greatest: int) -> None:
    if not least <= value <= greatest:
        raise ValueError(f'{name}={value}: expected {max(least, 0)} to {greatest}')
