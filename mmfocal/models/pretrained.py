# SPDX-License-Identifier: Apache-2.0
"""Load checkpoints safely, resize parameters to another geometry, and reject partial matches.

Files of the released code, of this backbone, and of whole detectors, segmentors and classifiers
around it are accepted. ``docs/checkpoints.md`` describes which parameters are resized and how.
"""

import math
import re
from typing import Any, NamedTuple

from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from mmfocal import compat
from mmfocal.errors import InputError, MissingFileError
from mmfocal.ops.focal_attention import FocalGeometry

from . import swin
from .checkpoint_files import StateDict, check_values, read_checkpoint, sample, tensors_of
from .focal_transformer import FocalTransformer
from .resizing import resize_coarse, resize_neighbors, resize_pool, resize_pos_embed, resize_window

SWIN = 'swin:'  # prefix that marks the checkpoint of a Swin Transformer
NO_WEIGHTS = """The released weights are no longer public. Alternatives:
  1. use your own copy: FOCAL_T_CKPT=/path/to/file (S, B and L likewise) before the command,
     or --cfg-options model.backbone.init_cfg.checkpoint=/path/to/file
  2. start from a Swin Transformer of the same size, whose weights are public:
     FOCAL_T_CKPT=swin:/path/to/file
  3. train them on ImageNet-1K: tools/train.py configs/classification/focal_t_in1k.py
  4. start from scratch: --cfg-options model.backbone.init_cfg=None"""
_ANCHOR = 'layers.0.blocks.0.attn.qkv.weight'
_BLOCK = re.compile(r'layers\.(\d+)\.blocks\.(\d+)\.')
_INDEX_BUFFER = re.compile(r'.*\b(relative_position_index|valid_ind|attn_mask)\w*')
_NEIGHBORS = 'attn.relative_position_bias_table_to_neighbors'
# Parameters that a file may hold and the model may lack, depending on its configuration.
_UNUSED = re.compile(
    rf'norm[0-3]?\.\w+|head\..*|layers\.\d+\.blocks\.\d+\.{re.escape(_NEIGHBORS)}'
)
# Entries that a whole model's file may hold and the model may lack: buffers that are recomputed.
_DERIVED = re.compile(
    rf'{_INDEX_BUFFER.pattern}|(.*\.)?num_batches_tracked|data_preprocessor\.(mean|std)'
)


def backbone_part(state: StateDict, path: str) -> StateDict:
    """Select the backbone's parameters and strip their prefix (``backbone.`` or any other).

    Args:
        state: All parameters of a file.
        path: Its name, for errors.

    Returns:
        Parameters by their names in ``FocalTransformer``.

    Raises:
        ValueError: If the file holds no such backbone, or several.
    """
    if any(part in key for key in state for part in swin.TRAITS):
        raise InputError(
            f'{path} holds a Swin Transformer; to start from it use SwinPretrained (or swin:FILE)'
        )
    prefixes = [
        key.removesuffix(_ANCHOR) for key in state if key == _ANCHOR or key.endswith(f'.{_ANCHOR}')
    ]
    if len(prefixes) != 1:
        raise InputError(
            f'{path}: expected one Focal Transformer (key {_ANCHOR}, with or without a prefix), '
            f'found {len(prefixes)} {prefixes or ""}; the file has {sample(list(state), state)}'
        )
    (prefix,) = prefixes
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


# ---- fitting a file to a model -----------------------------------------------------------------


def _file_geometry(block: str, source: StateDict) -> FocalGeometry:
    """Return window and expand size of a file's block, derived from the shapes of its tables."""
    rows = source[f'{block}attn.relative_position_bias_table'].shape[0]
    window = (math.isqrt(rows) + 1) // 2
    neighbors = source.get(f'{block}{_NEIGHBORS}')
    keys = 0 if neighbors is None else neighbors.shape[-1]
    return FocalGeometry(window, window - math.isqrt(window**2 - keys // 4))


def _fit(key: str, source: StateDict, model: FocalTransformer) -> Tensor | None:
    """Return the file's tensor in the model's geometry; None if it has to be reinitialized.

    Parameters whose shape does not depend on the geometry are returned unchanged.
    """
    value = source[key]
    if key == 'absolute_pos_embed':
        return resize_pos_embed(value, model.pos_embed_grid)
    block = _BLOCK.match(key)
    if not block:
        return value
    stage: Any = model.layers[int(block[1])]  # Any: a ModuleList has no element type
    geometry = stage.blocks[int(block[2])].geometry
    name = key.removeprefix(block[0])
    if name == 'attn.relative_position_bias_table':
        return resize_window(value, geometry.window_size)
    if name == _NEIGHBORS:
        return resize_neighbors(value, _file_geometry(block[0], source), geometry)
    if name.startswith('attn.relative_position_bias_table_to_windows.'):
        region = geometry.regions[1 + int(name.split('.')[-1])]
        return resize_coarse(value, geometry.window_size + region.side - 1)
    if name.startswith('pool_layers.') and name.endswith('.weight'):
        return resize_pool(value, geometry.cell_size(int(name.split('.')[1])))
    return value


def _describe(state: StateDict) -> dict[str, int]:
    """Return width, and blocks and heads of each stage, derived from the shapes."""
    found = {}
    if 'patch_embed.proj.weight' in state:
        found['embed_dims'] = state['patch_embed.proj.weight'].shape[0]
    for key in state:
        if block := _BLOCK.match(key):
            stage = block[1]
            blocks = f'blocks in stage {stage}'
            found[blocks] = max(found.get(blocks, 0), int(block[2]) + 1)
            if key.endswith('attn.relative_position_bias_table') and state[key].ndim == 2:
                found[f'heads in stage {stage}'] = state[key].shape[1]
    return found


def _may_start_fresh(key: str, source: StateDict, may_lack: re.Pattern[str] | None) -> bool:
    """Return whether a parameter may be absent from a file.

    Output norms may be absent. A neighbor table may be absent if the file's blocks of the same
    stage and parity (``expand_layer``) have none, because they do not attend to neighbor keys.
    Parameters that a Swin Transformer lacks may be absent from its file.
    """
    if may_lack and may_lack.fullmatch(key):
        return True
    if norm := re.match(r'norm[0-3]\.', key):
        return not any(name.startswith(norm[0]) for name in source)
    block = _BLOCK.match(key)
    if not block or not key.endswith(_NEIGHBORS):
        return False
    alike = (
        found
        for name in source
        if name.endswith(_NEIGHBORS) and (found := _BLOCK.match(name)) and found[1] == block[1]
    )
    return all((int(found[2]) - int(block[2])) % 2 for found in alike)


def _is_classifier(source: StateDict) -> bool:
    """Return whether a file of this project has the output norm of the last stage only.

    A dense model does not load the output norm of a classifier, neither of this project
    (``norm3``) nor of the released code (``norm``).
    """
    norms = {name[4] for name in source if re.match(r'norm[0-3]\.', name)}
    return norms == {'3'}


class Match(NamedTuple):
    """Tensors that a file provides for a model.

    Attributes:
        copied: Unchanged tensors, by the model's names.
        resized: Resized tensors, by the model's names.
        fresh: Names that keep their initial values.
    """

    copied: StateDict
    resized: StateDict
    fresh: list[str]


def match(
    source: StateDict, model: FocalTransformer, path: str, may_lack: re.Pattern[str] | None = None
) -> Match:
    """Match a file's parameters to a backbone, without changing the backbone.

    Args:
        source: Parameters of :func:`backbone_part`.
        model: The backbone.
        path: Name of the file, for errors.
        may_lack: Further parameters that keep their initial values if absent or of another shape.

    Returns:
        The tensors to load.

    Raises:
        ValueError: If the file is of another model; names what was expected and found.
    """
    source = {key: value for key, value in source.items() if not _INDEX_BUFFER.fullmatch(key)}
    if model.out_indices == (3,) and 'norm3.weight' not in source:
        source = {re.sub(r'^norm\.', 'norm3.', key): value for key, value in source.items()}
    elif model.out_indices != (3,) and _is_classifier(source):
        source = {key: value for key, value in source.items() if not key.startswith('norm3.')}
    target = model.state_dict()
    _check_same_model(source, target, path, may_lack)
    copied, resized = {}, {}
    fresh = [key for key in target if key not in source]
    for key in (key for key in target if key in source):
        if source[key].shape == target[key].shape:
            copied[key] = source[key]
            continue
        try:
            fitted = _fit(key, source, model)
        except (RuntimeError, ValueError) as error:
            raise InputError(f'{path}: cannot resize {sample([key], source)}: {error}') from error
        if fitted is not None and fitted.shape == target[key].shape:
            resized[key] = fitted
        elif fitted is None or (may_lack and may_lack.fullmatch(key)):
            fresh.append(key)
        else:
            raise InputError(
                f'{path} does not fit the model: expected {sample([key], target)}, '
                f'found {sample([key], source)}'
            )
    return Match(copied, resized, fresh)


def _check_same_model(
    source: StateDict, target: StateDict, path: str, may_lack: re.Pattern[str] | None
) -> None:
    """Reject a file of another width or depth, or with missing or unexpected keys."""
    theirs, ours = _describe(source), _describe(target)
    differences = [
        f'the file has {theirs.get(what, 0)} {what}, the model {ours.get(what, 0)}'
        for what in {**ours, **theirs}
        if theirs.get(what) != ours.get(what)
    ]
    missing = [
        key for key in target if key not in source and not _may_start_fresh(key, source, may_lack)
    ]
    surplus = [key for key in source if key not in target and not _UNUSED.fullmatch(key)]
    if differences or missing or surplus:
        raise InputError(
            f'{path} is of another model: {"; ".join(differences) or "its options differ"}\n'
            f'  expected but not in the file: {sample(missing, target)}\n'
            f'  in the file but not in the model: {sample(surplus, source)}'
        )


def _grouped(entries: dict[str, str]) -> str:
    """List keys in one line; a glob replaces the indices of blocks and stages."""
    stages: dict[str, dict[str, None]] = {}  # by name with a placeholder for the stage
    for key, note in entries.items():
        name = re.sub(r'blocks\.\d+', 'blocks.*', key) + note
        match = re.match(r'layers\.(\d)', name)
        stage = match[1] if match else ''
        stages.setdefault(re.sub(r'^layers\.\d', 'layers.{}', name), {})[stage] = None
    globs = [
        name.replace('{}', ''.join(found) if len(found) == 1 else f'[{"".join(found)}]')
        for name, found in stages.items()
    ]
    return f' ({", ".join(globs)})' if globs else ''


def _load(module: nn.Module, checkpoint: str, allow_pickle: bool, is_swin: bool) -> None:
    """Load a file into a backbone and log one line, for both initializers."""
    if not isinstance(module, FocalTransformer):
        raise TypeError(
            f'{"Swin" if is_swin else "Focal"}Pretrained is for the init_cfg of a '
            f'FocalTransformer, got {type(module).__name__}'
        )
    try:
        content = read_checkpoint(checkpoint, allow_pickle)
    except MissingFileError as error:
        raise MissingFileError(f'{error}. {NO_WEIGHTS}') from None
    state = tensors_of(content, checkpoint)
    if is_swin:
        source = swin.swin_to_focal(state, checkpoint)
        copied, resized, fresh = match(source, module, checkpoint, swin.MAY_LACK)
    else:
        source = backbone_part(state, checkpoint)
        copied, resized, fresh = match(source, module, checkpoint)
    target = module.state_dict()
    check_values({**copied, **resized}, target, checkpoint)
    shapes = {
        key: f' {tuple(source[key].shape)} -> {tuple(value.shape)}'
        for key, value in resized.items()
    }
    for key, value in {**copied, **resized}.items():
        target[key].copy_(value)
    print_log(
        f'{SWIN * is_swin}{checkpoint}: loaded {len(copied)}, '
        f'resized {len(resized)}{_grouped(shapes)}, '
        f'fresh {len(fresh)}{_grouped(dict.fromkeys(fresh, ""))}, '
        f'ignored {len(state) - len(copied) - len(resized)}',
        logger='current',
    )
    if compat.has_init_info(module):
        name = 'SwinPretrained' if is_swin else 'FocalPretrained'
        update_init_info(module, init_info=f'{name}: {checkpoint}')


@WEIGHT_INITIALIZERS.register_module()
class FocalPretrained:
    """MMEngine initializer: load a checkpoint into a ``FocalTransformer``, or fail.

    Use it as the backbone's ``init_cfg=dict(type='FocalPretrained', checkpoint=...)``.

    Args:
        checkpoint: Local path or URL of a file of the released code, of this backbone, or of
            a whole model around it, ``.pth`` or safetensors; ``hf-hub:OWNER/NAME`` for the Hugging
            Face Hub. With the prefix ``swin:``, ``SwinPretrained`` loads the file.
        allow_pickle: Unpickle objects of any class. This can run any code: trusted files only.
    """

    def __init__(self, checkpoint: str, allow_pickle: bool = False) -> None:
        self.checkpoint = checkpoint
        self.allow_pickle = allow_pickle

    def __call__(self, module: nn.Module) -> None:
        """Load the file into ``module`` and log one line.

        Args:
            module: The backbone.

        Raises:
            TypeError: If ``module`` is not a ``FocalTransformer``.
            FileNotFoundError: If the file does not exist.
            ValueError: If the file is damaged or does not fit; the module is then unchanged.
        """
        name = str(self.checkpoint)
        _load(module, name.removeprefix(SWIN), self.allow_pickle, name.startswith(SWIN))


@WEIGHT_INITIALIZERS.register_module()
class SwinPretrained(FocalPretrained):
    """MMEngine initializer: start a ``FocalTransformer`` from a Swin Transformer of its size.

    Use it as the backbone's ``init_cfg=dict(type='SwinPretrained', checkpoint=...)``. Parameters
    that both models have are copied, and patch merging is converted to a convolution. Parameters
    that Swin lacks (pooling, bias tables of neighbor and coarse keys, norms after downsampling)
    keep their initial values.

    Args:
        checkpoint: Local path or URL of a file of the original code, timm, mmpretrain, mmdet
            or mmseg, ``.pth`` or safetensors; ``hf-hub:OWNER/NAME`` for the Hugging Face Hub.
        allow_pickle: Unpickle objects of any class. This can run any code: trusted files only.
    """

    def __call__(self, module: nn.Module) -> None:
        """Load the file into ``module`` and log one line, see :class:`FocalPretrained`."""
        _load(module, str(self.checkpoint).removeprefix(SWIN), self.allow_pickle, is_swin=True)


# ---- whole models ------------------------------------------------------------------------------


def convert_upstream(state: StateDict) -> StateDict:
    """Rename a released classifier's parameters to those of mmpretrain's ``ImageClassifier``.

    Args:
        state: Parameters of any model.

    Returns:
        The renamed parameters; those of other models are returned unchanged.
    """
    if _ANCHOR not in state or 'head.weight' not in state:
        return state
    names = {'norm.': 'backbone.norm3.', 'head.': 'head.fc.'}
    return {
        re.sub(r'^(norm\.|head\.|)', lambda part: names.get(part[0], 'backbone.'), key): value
        for key, value in state.items()
        if not _INDEX_BUFFER.fullmatch(key)
    }


def convert_to_upstream(state: StateDict, path: str) -> StateDict:
    """Rename a classifier's parameters to those of the released code (inverse conversion).

    Args:
        state: Parameters of mmpretrain's ``ImageClassifier`` around a ``FocalTransformer``.
        path: Name of the file, for errors.

    Returns:
        The renamed parameters, in the same order.

    Raises:
        ValueError: If the file does not hold such a classifier.
    """
    names = {'backbone.norm3.': 'norm.', 'backbone.': '', 'head.fc.': 'head.'}
    ours = re.compile(r'(backbone\.norm3\.|backbone\.(?!norm\d)|head\.fc\.)(?=.)')
    foreign = [key for key in state if not ours.match(key) and not is_derived(key)]
    if foreign or f'backbone.{_ANCHOR}' not in state:
        raise InputError(
            f'{path}: expected a classifier with a FocalTransformer (backbone., backbone.norm3, '
            f'head.fc), found {sample(foreign or list(state), state)}'
        )
    return {
        ours.sub(lambda part: names[part[0]], key, count=1): value
        for key, value in state.items()
        if ours.match(key)
    }


def is_derived(key: str) -> bool:
    """Return whether an entry is a recomputed buffer, which a file may lack or hold.

    Args:
        key: Name in a whole model.
    """
    return _DERIVED.fullmatch(key) is not None


def load_whole_model(model: nn.Module, state: StateDict, path: str) -> None:
    """Load a whole model strictly.

    Args:
        model: Detector, segmentor or classifier.
        state: Parameters under the model's names.
        path: Name of the file, for errors and the log.

    Raises:
        ValueError: If a parameter is missing, unexpected, of another shape, or not finite.
    """
    target = model.state_dict()
    check_values(state, target, path)
    try:
        missing, surplus = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(f'{path} does not fit the model: {error}') from error
    ignored = len(surplus)
    missing, surplus = (
        [key for key in keys if not is_derived(key)] for keys in (missing, surplus)
    )
    if missing or surplus:
        raise InputError(
            f'{path} does not fit the model\n'
            f'  expected but not in the file: {sample(missing, target)}\n'
            f'  in the file but not in the model: {sample(surplus, state)}'
        )
    print_log(f'{path}: loaded {len(state) - ignored}, ignored {ignored}', logger='current')
