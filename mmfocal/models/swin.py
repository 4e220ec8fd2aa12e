# SPDX-License-Identifier: Apache-2.0
"""Conversion of Swin Transformer checkpoints to the parameter names of ``FocalTransformer``.

A Focal block extends a Swin block: queries, keys, values, projections, MLPs, norms and the bias
tables of the window have the same names, shapes and meaning. Three families of files differ in
names and in the order of the four tokens that patch merging concatenates:

* the original code: ``layers.0.blocks.0.attn.qkv``, a downsampling at the end of its stage;
* timm: the same, but a downsampling is at the start of the next stage;
* mmpretrain, mmdet and mmseg: ``stages.0.blocks.0.attn.w_msa.qkv``.
"""

import re

from torch import Tensor

from .checkpoint_files import StateDict, sample

_ANCHOR = re.compile(
    r'(?P<prefix>|.*\.)(?P<stages>layers[._]|stages\.)0\.blocks\.0\.attn\.(w_msa\.)?qkv\.weight'
)
_RENAMED = (
    (re.compile(r'^(stages\.|layers_)'), 'layers.'),
    (re.compile(r'\.attn\.w_msa\.'), '.attn.'),
    (re.compile(r'\.ffn\.layers\.0\.0\.'), '.mlp.fc1.'),
    (re.compile(r'\.ffn\.layers\.1\.'), '.mlp.fc2.'),
    (re.compile(r'^patch_embed\.projection\.'), 'patch_embed.proj.'),
)
_MERGE = re.compile(r'layers\.(\d)\.downsample\.reduction\.weight')
TRAITS = ('.downsample.reduction.', '.attn.w_msa.')  # substrings that only Swin's names have
# Parameters that Swin Transformers lack or have in another shape.
MAY_LACK = re.compile(
    r'norm[0-3]\.\w+|absolute_pos_embed|patch_embed\.proj\.weight'
    r'|layers\.\d\.downsample\.(pre_norm|norm|proj)\.\w+'
    r'|layers\.\d\.blocks\.\d+\.(gamma_[12]|pool_layers\..+)'
    r'|layers\.\d\.blocks\.\d+\.attn\.relative_position_bias_table_to_(neighbors|windows\.\d)'
)
_OTHERS = {
    'relative_position_bias_table_to_windows': 'a Focal Transformer; use FocalPretrained, '
    'without swin:',
    'logit_scale': 'a Swin V2, whose attention differs; expected a Swin (V1)',
}


def merge_to_conv(
    reduction: Tensor, norm_weight: Tensor, norm_bias: Tensor, is_unfolded: bool
) -> tuple[Tensor, Tensor]:
    """Convert Swin's patch merging to the convolution of a Focal downsampling.

    Swin normalizes the four merged tokens and then reduces them; Focal convolves and then
    normalizes. Scale, shift and mean subtraction of the norm are linear and are folded into the
    convolution. The division by the standard deviation is omitted, because the norm after the
    convolution cancels such factors.

    Args:
        reduction: ``(2C, 4C)``.
        norm_weight: ``(4C,)``.
        norm_bias: ``(4C,)``.
        is_unfolded: Whether the ``4C`` inputs are ordered by channel, row and column, as in
            OpenMMLab's code, instead of by column, row and channel.

    Returns:
        Weight ``(2C, C, 2, 2)`` and bias ``(2C,)``.
    """
    weight = reduction * norm_weight
    weight = weight - weight.mean(dim=1, keepdim=True)
    if is_unfolded:
        kernel = weight.unflatten(1, (-1, 2, 2))
    else:
        kernel = weight.unflatten(1, (2, 2, -1)).permute(0, 3, 2, 1)
    return kernel.contiguous(), reduction @ norm_bias


def _strip_prefix(state: StateDict, path: str) -> tuple[StateDict, bool]:
    """Return the backbone's part of a file, and whether it has OpenMMLab's names."""
    anchors = [found for key in state if (found := _ANCHOR.fullmatch(key))]
    if len(anchors) != 1:
        raise ValueError(
            f'{path}: expected one Swin Transformer of the original code, timm, mmpretrain, mmdet '
            f'or mmseg, found {len(anchors)}; the file has {sample(list(state), state)}'
        )
    prefix = anchors[0]['prefix']
    for part, other in _OTHERS.items():
        if any(part in key for key in state if key.startswith(prefix)):
            raise ValueError(f'{path} holds {other}')
    own = {k.removeprefix(prefix): value for k, value in state.items() if k.startswith(prefix)}
    return own, anchors[0]['stages'] == 'stages.'


def _downsamplings(state: StateDict, is_unfolded: bool) -> StateDict:
    """Return the parameters of the downsamplings in Focal's layout."""
    merges = {key: int(found[1]) for key in state if (found := _MERGE.fullmatch(key))}
    is_timm = bool(merges) and 0 not in merges.values()  # downsampling at the start of stage 1
    converted = {}
    for key, stage in merges.items():
        norm = key.replace('reduction.weight', 'norm.')
        parts = state[key], state[f'{norm}weight'], state[f'{norm}bias']
        name = f'layers.{stage - is_timm}.downsample.proj.'
        converted[f'{name}weight'], converted[f'{name}bias'] = merge_to_conv(*parts, is_unfolded)
    return converted


def swin_to_focal(state: StateDict, path: str) -> StateDict:
    """Rename and reorder the parameters of a Swin Transformer.

    Args:
        state: All parameters of a file of the original code, timm, mmpretrain, mmdet or mmseg.
        path: Its name, for errors.

    Returns:
        Parameters by their names in ``FocalTransformer``.

    Raises:
        ValueError: If the file holds no Swin Transformer, several, or another transformer.
    """
    own, is_unfolded = _strip_prefix(state, path)
    renamed = {}
    for key, value in own.items():
        for pattern, name in _RENAMED:
            key = pattern.sub(name, key)
        renamed[key] = value
    try:
        converted = _downsamplings(renamed, is_unfolded)
    except KeyError as error:
        raise ValueError(f'{path} is incomplete: it lacks {error}') from error
    kept = {key: value for key, value in renamed.items() if '.downsample.' not in key}
    return kept | converted
