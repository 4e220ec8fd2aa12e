# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: reading them safely, resizing what depends on geometry, and refusing half a fit.

Accepted are files of the released code, of this backbone, and of whole detectors, segmentors and
classifiers around it. ``docs/checkpoints.md`` tells what is resized and how.
"""

import math
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.utils import digit_version
from torch import Tensor, nn

from mmfocal.ops.focal_attention import FocalBias, FocalGeometry
from mmfocal.ops.focal_attention.bias import combined_bias

from .focal_transformer import FocalTransformer

StateDict = dict[str, Tensor]

NO_WEIGHTS = """{path} does not exist. The released weights are no longer public. Three ways on:
  1. use a copy of your own: FOCAL_T_CKPT=/path/to/file (S, B and L likewise) before the command,
     or --cfg-options model.backbone.init_cfg.checkpoint=/path/to/file
  2. train them on ImageNet-1K: tools/train.py configs/classification/focal_t_in1k.py
  3. start from scratch: --cfg-options model.backbone.init_cfg=None"""

_ANCHOR = 'layers.0.blocks.0.attn.qkv.weight'
_BLOCK = re.compile(r'layers\.(\d+)\.blocks\.(\d+)\.')
_INDEX_BUFFER = re.compile(r'.*\b(relative_position_index|valid_ind|attn_mask)\w*')
_NEIGHBORS = 'attn.relative_position_bias_table_to_neighbors'
# What a file may hold beyond the model: the model's configuration decides whether it is used.
_UNUSED = re.compile(
    rf'norm[0-3]?\.\w+|head\..*|layers\.\d+\.blocks\.\d+\.{re.escape(_NEIGHBORS)}'
)
# What a whole model's file may hold beyond it: numbers that the model computes itself.
_DERIVED = re.compile(
    rf'{_INDEX_BUFFER.pattern}|(.*\.)?num_batches_tracked|data_preprocessor\.(mean|std)'
)


# ---- reading -----------------------------------------------------------------------------------


def _history_method(owner: type, name: str) -> Any:
    """What a checkpoint's ``getattr`` may look up: the statistics of a HistoryBuffer."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise UnpicklingError(f'GLOBAL builtins.getattr({owner!r}, {name!r}) is not allowed')
    return getattr(owner, name)


def _training_globals() -> AbstractContextManager:
    """Let the restricted unpickler read what MMEngine's training checkpoints hold.

    These are numpy scalars and HistoryBuffers. PyTorch < 2.6 cannot be told so.
    """
    if digit_version(torch.__version__) < digit_version('2.6.0'):
        return nullcontext()
    reconstruct, scalar = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    numpy_names = ('numpy.core.multiarray', 'numpy._core.multiarray')  # numpy 1 and 2
    return torch.serialization.safe_globals(
        [
            HistoryBuffer,
            (_history_method, 'builtins.getattr'),
            np.ndarray,
            np.dtype,
            *{type(np.dtype(code)) for code in '?bBhHiIlLqQefdSUO'},
            *((reconstruct, f'{name}._reconstruct') for name in numpy_names),
            *((scalar, f'{name}.scalar') for name in numpy_names),
        ]
    )


def _load_file(path: str, allow_pickle: bool) -> Any:
    """``torch.load`` of a local file or an address, restricted to plain data unless allowed."""
    options = dict(map_location='cpu', weights_only=not allow_pickle)
    with _training_globals():
        if '://' in path:
            return torch.hub.load_state_dict_from_url(path, **options)
        return torch.load(path, **options)


def read_checkpoint(path: str, allow_pickle: bool = False) -> dict[str, Any]:
    """Read a checkpoint file without running code from it.

    Args:
        path: Local path, or an address (``https://...``), which is downloaded once.
        allow_pickle: Unpickle objects of any class. This can run any code: trusted files only.

    Returns:
        The file's content.

    Raises:
        FileNotFoundError: If there is no such file; says how to go on without the released ones.
        ValueError: If the file is damaged, needs unpickling, or holds no dict.
    """
    path = str(path)
    if '://' not in path:
        path = str(Path(path).expanduser())
        if not Path(path).is_file():
            raise FileNotFoundError(NO_WEIGHTS.format(path=path))
    try:
        content = _load_file(path, allow_pickle)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, LookupError) as error:
        foreign = re.search(
            r'GLOBAL \S+|Unsupported class \S+|unrecognized function .+', str(error)
        )
        if foreign and not allow_pickle:
            raise ValueError(
                f'{path} holds objects beside tensors ({foreign[0]}). Unpickling them can run any '
                'code, so it is refused; for a file that you trust say allow_pickle=True '
                '(init_cfg) or --allow-pickle (tools/test.py)'
            ) from error
        reason = str(error).strip().split('\n')[0] or type(error).__name__
        raise ValueError(
            f'{path} is damaged (truncated?) or not a PyTorch checkpoint: {reason}'
        ) from error
    except (ImportError, AttributeError) as error:
        raise ValueError(f'{path} needs a class that is not installed: {error}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path}: expected a dict, found {type(content).__name__}')
    return content


def tensors_of(checkpoint: dict[str, Any], path: str) -> StateDict:
    """Find a checkpoint's parameters: under ``state_dict``, under ``model``, or bare.

    Args:
        checkpoint: Content of a file.
        path: Its name, for errors.

    Returns:
        Tensors by name, without the ``module.`` of a parallel wrapper.

    Raises:
        ValueError: If there are none.
    """
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    state = {
        str(key).removeprefix('module.'): value
        for key, value in checkpoint.items()
        if isinstance(value, Tensor)
    }
    if not state:
        raise ValueError(f'{path} holds no tensors; found the keys {list(checkpoint)[:5]}')
    return state


def _sample(keys: list[str], state: StateDict, count: int = 4) -> str:
    """A few keys with shapes, for errors."""
    shown = [f'{key} {tuple(state[key].shape)}' for key in keys[:count]]
    return ', '.join(shown + [f'and {len(keys) - count} more'] * (len(keys) > count)) or 'none'


def backbone_part(state: StateDict, path: str) -> StateDict:
    """Pick the backbone's parameters and strip their prefix (``backbone.`` or any other).

    Args:
        state: All parameters of a file.
        path: Its name, for errors.

    Returns:
        Parameters under the names that ``FocalTransformer`` has.

    Raises:
        ValueError: If the file holds no such backbone, or several.
    """
    prefixes = [
        key.removesuffix(_ANCHOR) for key in state if key == _ANCHOR or key.endswith(f'.{_ANCHOR}')
    ]
    if len(prefixes) != 1:
        raise ValueError(
            f'{path}: expected one Focal Transformer (key {_ANCHOR}, with or without a prefix), '
            f'found {len(prefixes)} {prefixes or ""}; the file has {_sample(list(state), state)}'
        )
    (prefix,) = prefixes
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


# ---- resizing ----------------------------------------------------------------------------------


def _interpolate(grid: Tensor, size: tuple[int, int], mode: str = 'bilinear') -> Tensor:
    """``(C, rows, cols)`` -> ``(C, *size)``."""
    return F.interpolate(grid[None].float(), size, mode=mode, align_corners=False)[0]


def resize_coarse(table: Tensor, size: int) -> Tensor:
    """Resize a coarse bias table per head as a grid: ``(h, S*S)`` -> ``(h, size*size)``."""
    side = math.isqrt(table.shape[1])
    return _interpolate(table.unflatten(1, (side, side)), (size, size)).flatten(1)


def resize_own(table: Tensor, window: int) -> Tensor:
    """Resize an own-window table: ``((2w-1)^2, h)`` -> ``((2*window-1)^2, h)``."""
    return resize_coarse(table.t(), 2 * window - 1).t()


def resize_pool(weight: Tensor, cell: int) -> Tensor:
    """Resize pooling weights to ``cell x cell`` positions, keeping their sum.

    Args:
        weight: ``(1, p*p)`` of ``pool_method='fc'``, or ``(C, 1, p, p)`` of ``'conv'``.
        cell: New side, in tokens.

    Returns:
        The same layout with ``cell`` in place of ``p``.
    """
    grid = weight if weight.ndim == 4 else weight.unflatten(1, (math.isqrt(weight.shape[1]),) * 2)
    old = grid.reshape(-1, *grid.shape[-2:])
    new = _interpolate(old, (cell, cell)) * (old.shape[-1] / cell) ** 2
    # what is still missing is spread evenly: a factor would explode where the sum is near zero
    new = new + (old.sum((1, 2), keepdim=True) - new.sum((1, 2), keepdim=True)) / cell**2
    return new[:, None] if weight.ndim == 4 else new.flatten(1)


def resize_pos_embed(embed: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize ``(1, N, C)`` of a square token grid bicubically to ``grid``."""
    side = math.isqrt(embed.shape[1])
    if side**2 != embed.shape[1]:
        raise ValueError(f'absolute_pos_embed has {embed.shape[1]} tokens, which is no square')
    old = embed[0].t().unflatten(1, (side, side))
    return _interpolate(old, grid, 'bicubic').flatten(1).t()[None]


def _stretch(old: int, new: int) -> Tensor:
    """Matrix of linear interpolation from ``old`` to ``new`` places: ``(new, old)``."""
    return F.interpolate(torch.eye(old)[None], new, mode='linear', align_corners=False)[0].t()


def resize_neighbors(table: Tensor, old: FocalGeometry, new: FocalGeometry) -> Tensor | None:
    """Resize a neighbour table to another window or expand size.

    A token's bias, composed if the token is attended twice, is put at its place in the square of
    side ``R = w + 2e`` around the window. Each of the eight parts of that square (four edges,
    four corners) is interpolated on its own, and so are the queries. A token that is attended
    twice afterwards gets the result less ``log 2`` twice, which composes to the result.

    Args:
        table: ``(1, h, w*w, 4(w^2-(w-e)^2))`` of ``old``.
        old: Geometry with expand.
        new: Geometry with expand.

    Returns:
        The table of ``new``; None if the edges of ``old`` have gaps (``2e > w``).
    """
    w, e = old.window_size, old.expand_size
    if 2 * e > w:
        return None
    zeros = table.new_zeros((2 * w - 1) ** 2, table.shape[1], dtype=torch.float)
    square = combined_bias(FocalBias(zeros, table.float()), FocalGeometry(w, e))
    square = square.unflatten(2, (w + 2 * e,) * 2).unflatten(1, (w, w))
    edge = _stretch(e, new.expand_size)
    queries = _stretch(w, new.window_size)
    keys = torch.block_diag(edge, queries, edge)
    for axis, matrix in enumerate((queries, queries, keys, keys), start=1):
        square = torch.tensordot(square, matrix, ([axis], [1])).movedim(-1, axis)
    places = torch.tensor(_places(new))
    times = torch.bincount(places)[places]
    return (square.flatten(3).flatten(1, 2)[..., places] - times.log())[None]


def _places(geometry: FocalGeometry) -> list[int]:
    """Place of each neighbour key in the square of side ``w + 2e``, in the table's order."""
    w, e = geometry.window_size, geometry.expand_size
    return [
        (position // w + move.rows + e) * geometry.regions[0].size + position % w + move.cols + e
        for move in geometry.moves
        for position in move.kept
    ]


# ---- fitting a file to a model -----------------------------------------------------------------


def _file_geometry(block: str, source: StateDict) -> FocalGeometry:
    """Window and expand of a file's block, as its tables' shapes tell them."""
    rows = source[f'{block}attn.relative_position_bias_table'].shape[0]
    window = (math.isqrt(rows) + 1) // 2
    neighbors = source.get(f'{block}{_NEIGHBORS}')
    keys = 0 if neighbors is None else neighbors.shape[-1]
    return FocalGeometry(window, window - math.isqrt(window**2 - keys // 4))


def _fit(key: str, source: StateDict, model: FocalTransformer) -> Tensor | None:
    """The file's tensor in another geometry; None if the tensor must start fresh.

    Keys whose shape does not depend on geometry come back as they are.
    """
    value = source[key]
    if key == 'absolute_pos_embed':
        return resize_pos_embed(value, model.pos_embed_grid)
    block = _BLOCK.match(key)
    if not block:
        return value
    geometry = model.layers[int(block[1])].blocks[int(block[2])].geometry
    name = key.removeprefix(block[0])
    if name == 'attn.relative_position_bias_table':
        return resize_own(value, geometry.window_size)
    if name == _NEIGHBORS:
        return resize_neighbors(value, _file_geometry(block[0], source), geometry)
    if name.startswith('attn.relative_position_bias_table_to_windows.'):
        region = geometry.regions[1 + int(name.split('.')[-1])]
        return resize_coarse(value, geometry.window_size + region.size - 1)
    if name.startswith('pool_layers.') and name.endswith('.weight'):
        return resize_pool(value, geometry.cell_size(int(name.split('.')[1])))
    return value


def _describe(state: StateDict) -> dict[str, int]:
    """Width, and blocks and heads of each stage, as the shapes tell them."""
    found = {}
    if 'patch_embed.proj.weight' in state:
        found['embed_dims'] = state['patch_embed.proj.weight'].shape[0]
    for key in state:
        if block := _BLOCK.match(key):
            stage = int(block[1]) + 1
            blocks = f'blocks in stage {stage}'
            found[blocks] = max(found.get(blocks, 0), int(block[2]) + 1)
            if key.endswith('attn.relative_position_bias_table') and state[key].ndim == 2:
                found[f'heads in stage {stage}'] = state[key].shape[1]
    return found


def _may_start_fresh(key: str, source: StateDict) -> bool:
    """Whether a parameter may be absent from a file.

    An output norm may, and a neighbour table if the file's blocks of that stage and parity
    (``expand_layer``) have none: they did not look beyond their window.
    """
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


class Match(NamedTuple):
    """What a file gives to a model.

    Attributes:
        copied: Tensors taken as they are, by the model's names.
        resized: Tensors that were resized, by the model's names.
        fresh: Names that keep their initial values.
    """

    copied: StateDict
    resized: StateDict
    fresh: list[str]


def match(source: StateDict, model: FocalTransformer, path: str) -> Match:
    """Fit a file's parameters to a backbone, without changing the backbone.

    Args:
        source: Parameters of :func:`backbone_part`.
        model: The backbone.
        path: Name of the file, for errors.

    Returns:
        What to load.

    Raises:
        ValueError: If the file is of another model; says what was expected and found.
    """
    source = {key: value for key, value in source.items() if not _INDEX_BUFFER.fullmatch(key)}
    if model.out_indices == (3,) and 'norm3.weight' not in source:
        source = {re.sub(r'^norm\.', 'norm3.', key): value for key, value in source.items()}
    target = model.state_dict()
    _check_same_model(source, target, path)
    copied, resized = {}, {}
    fresh = [key for key in target if key not in source]
    for key in (key for key in target if key in source):
        if source[key].shape == target[key].shape:
            copied[key] = source[key]
            continue
        try:
            fitted = _fit(key, source, model)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f'{path}: cannot resize {_sample([key], source)}: {error}') from error
        if fitted is None:
            fresh.append(key)
        elif fitted.shape == target[key].shape:
            resized[key] = fitted
        else:
            raise ValueError(
                f'{path} does not fit the model: expected {_sample([key], target)}, '
                f'found {_sample([key], source)}'
            )
    return Match(copied, resized, fresh)


def _check_same_model(source: StateDict, target: StateDict, path: str) -> None:
    """Refuse a file of another width or depth, and one with keys missing or left over."""
    theirs, ours = _describe(source), _describe(target)
    differences = [
        f'the file has {theirs.get(what, 0)} {what}, the model {ours.get(what, 0)}'
        for what in {**ours, **theirs}
        if theirs.get(what) != ours.get(what)
    ]
    missing = [key for key in target if key not in source and not _may_start_fresh(key, source)]
    surplus = [key for key in source if key not in target and not _UNUSED.fullmatch(key)]
    if differences or missing or surplus:
        raise ValueError(
            f'{path} is of another model: {"; ".join(differences) or "its options differ"}\n'
            f'  expected but not in the file: {_sample(missing, target)}\n'
            f'  in the file but not in the model: {_sample(surplus, source)}'
        )


def _grouped(entries: dict[str, str]) -> str:
    """List keys with the blocks of a stage, and of all stages, as one: a line stays a line."""
    groups = dict.fromkeys(
        re.sub(r'blocks\.\d+', 'blocks.*', key) + note for key, note in entries.items()
    )
    return f' ({", ".join(groups)})' if groups else ''


@WEIGHT_INITIALIZERS.register_module()
class FocalPretrained:
    """MMEngine initialiser: load a checkpoint into a ``FocalTransformer``, or fail.

    Use it as the backbone's ``init_cfg=dict(type='FocalPretrained', checkpoint=...)``.

    Args:
        checkpoint: Local path or address of a file of the released code, of this backbone, or of
            a whole model around it.
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
            TypeError: If ``module`` is no ``FocalTransformer``.
            FileNotFoundError: If the file does not exist.
            ValueError: If the file is damaged or does not fit; the module is then unchanged.
        """
        if not isinstance(module, FocalTransformer):
            raise TypeError(
                f'FocalPretrained is for the init_cfg of a FocalTransformer, '
                f'got {type(module).__name__}'
            )
        state = tensors_of(read_checkpoint(self.checkpoint, self.allow_pickle), self.checkpoint)
        source = backbone_part(state, self.checkpoint)
        copied, resized, fresh = match(source, module, self.checkpoint)
        target = module.state_dict()
        shapes = {
            key: f' {tuple(source[key].shape)} -> {tuple(value.shape)}'
            for key, value in resized.items()
        }
        for key, value in {**copied, **resized}.items():
            target[key].copy_(value)
        print_log(
            f'{self.checkpoint}: loaded {len(copied)}, resized {len(resized)}{_grouped(shapes)}, '
            f'fresh {len(fresh)}{_grouped(dict.fromkeys(fresh, ""))}, '
            f'ignored {len(state) - len(copied) - len(resized)}',
            logger='current',
        )
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'FocalPretrained: {self.checkpoint}')


# ---- whole models ------------------------------------------------------------------------------


def convert_upstream(state: StateDict) -> StateDict:
    """Rename a released classifier's parameters to those of mmpretrain's ``ImageClassifier``.

    Args:
        state: Parameters of any model.

    Returns:
        The renamed parameters; other models' come back as they are.
    """
    if _ANCHOR not in state or 'head.weight' not in state:
        return state
    names = {'norm.': 'backbone.norm3.', 'head.': 'head.fc.'}
    return {
        re.sub(r'^(norm\.|head\.|)', lambda part: names.get(part[0], 'backbone.'), key): value
        for key, value in state.items()
        if not _INDEX_BUFFER.fullmatch(key)
    }


def load_whole_model(model: nn.Module, state: StateDict, path: str) -> None:
    """Load a whole model, all of it.

    Args:
        model: Detector, segmentor or classifier.
        state: Parameters under the model's names.
        path: Name of the file, for errors and the log.

    Raises:
        ValueError: If a parameter is missing, left over or of another shape.
    """
    target = model.state_dict()
    try:
        missing, surplus = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f'{path} does not fit the model: {error}') from error
    ignored = len(surplus)
    missing, surplus = (
        [key for key in keys if not _DERIVED.fullmatch(key)] for keys in (missing, surplus)
    )
    if missing or surplus:
        raise ValueError(
            f'{path} does not fit the model\n'
            f'  expected but not in the file: {_sample(missing, target)}\n'
            f'  in the file but not in the model: {_sample(surplus, state)}'
        )
    print_log(f'{path}: loaded {len(state) - ignored}, ignored {ignored}', logger='current')
