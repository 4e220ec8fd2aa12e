# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: reading them without running code from them, and finding their tensors."""

import hashlib
import json
import os
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version
from torch import Tensor

from mmfocal import settings
from mmfocal.errors import InputError, MissingFileError

StateDict = dict[str, Tensor]

SUFFIXES = ('.pth', '.safetensors')
HUB = 'hf-hub:'  # timm's prefix
UNVERIFIED = '#unverified'  # at the end of a URL, skips verification
_NAMED_HASH = re.compile(r'-([0-9a-f]{8,64})\.\w+$')  # as in model-0123abcd.pth


def _history_method(owner: type, name: str) -> Any:
    """Replace ``getattr`` in a checkpoint: only a HistoryBuffer's statistics are allowed."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise UnpicklingError(f'GLOBAL builtins.getattr({owner!r}, {name!r}) is not allowed')
    return getattr(owner, name)


def _training_globals() -> AbstractContextManager[Any]:
    """Allow the restricted unpickler to load the objects in MMEngine's training checkpoints.

    These are NumPy scalars and HistoryBuffers. PyTorch < 2.6 has no such setting.
    """
    if digit_version(torch.__version__) < digit_version('2.6.0'):
        return nullcontext()
    reconstruct, scalar = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    numpy_names = ('numpy.core.multiarray', 'numpy._core.multiarray')  # numpy 1 and 2
    allowed: list[Any] = [
        HistoryBuffer,
        (_history_method, 'builtins.getattr'),
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in '?bBhHiIlLqQefdSUO'},
        *((reconstruct, f'{name}._reconstruct') for name in numpy_names),
        *((scalar, f'{name}.scalar') for name in numpy_names),
    ]
    return torch.serialization.safe_globals(allowed)


def _hub_address(name: str) -> str:
    """Return the URL of ``OWNER/NAME[@REVISION]``'s weights on the Hugging Face Hub."""
    repository, _, revision = name.partition('@')
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repository):
        raise InputError(f'{HUB}{name}: expected {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION')
    endpoint = settings.value(settings.HF_ENDPOINT, 'https://huggingface.co').rstrip('/')
    return f'{endpoint}/{repository}/resolve/{revision or "main"}/model.safetensors'


def split_checksum(address: str) -> tuple[str, str]:
    """Split the SHA-256 off a URL.

    Args:
        address: ``https://...#sha256=...``, or one whose name has the first digits
            (``model-0123abcd.pth``, as in OpenMMLab's model zoos and ``torch.hub``), or
            ``https://...#unverified``.

    Returns:
        The URL alone, and the digits; empty if there are none.

    Raises:
        ValueError: If ``sha256=`` is not followed by 8 to 64 hexadecimal digits.
    """
    if address.endswith(UNVERIFIED):
        return address.removesuffix(UNVERIFIED), ''
    url, mark, checksum = address.partition('#sha256=')
    if not mark:
        named = _NAMED_HASH.search(url.split('?')[0])
        return url, named[1] if named else ''
    if not re.fullmatch('[0-9a-f]{8,64}', checksum.lower()):
        raise InputError(f'{address}: expected 8 to 64 hexadecimal digits after #sha256=')
    return url, checksum.lower()


def download(address: str, needs_checksum: bool = True) -> Path:
    """Download once, into the folder of ``torch.hub``, and verify the checksum.

    Args:
        address: See ``split_checksum``.
        needs_checksum: Whether a URL without a checksum is an error, unless it ends in
            ``#unverified``.

    Raises:
        FileNotFoundError: If it cannot be downloaded.
        ValueError: If it has no checksum or another one.
    """
    url, checksum = split_checksum(address)
    if needs_checksum and not (checksum or address.endswith(UNVERIFIED)):
        raise InputError(
            f'{address}: downloads need a checksum; expected a name like model-0123abcd.pth, or '
            f'#sha256=... at the end of the URL; {UNVERIFIED} at the end downloads without one'
        )
    path = Path(torch.hub.get_dir(), 'checkpoints', _cached_name(address, url))
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), checksum or None)
        except OSError as error:
            raise FileNotFoundError(f'{address} cannot be downloaded: {error}') from error
        except RuntimeError as error:
            raise InputError(f'{address} is not the expected file: {error}') from error
    elif checksum:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if not found.startswith(checksum):
            raise InputError(
                f'{path} has the SHA-256 {found}, expected {checksum} from {address}; remove the '
                'file to download it again'
            )
    return path


def _cached_name(address: str, url: str) -> str:
    """Return a file name that no other URL has; it keeps the suffix.

    The query is a part of the URL: ``get.pth?id=1`` and ``get.pth?id=2`` are two files.
    """
    name = url.split('?')[0].rsplit('/', 1)[-1][-100:]
    return f'{hashlib.sha256(address.encode()).hexdigest()[:16]}_{name}'


def _local_path(name: str) -> Path:
    """Return the local path of the file; a remote file is downloaded first."""
    if name.startswith(HUB):
        repository, mark, checksum = name.removeprefix(HUB).partition('#')
        # a model.safetensors holds tensors only
        return download(f'{_hub_address(repository)}{mark}{checksum}', needs_checksum=False)
    if '://' in name:
        return download(name)
    path = Path(name).expanduser()
    if not path.is_file():
        raise MissingFileError(f'checkpoint {path} does not exist')
    return path


def _read_safetensors(path: Path) -> StateDict:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f'reading {path} needs safetensors: pip install safetensors') from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f'{path} is damaged or not a safetensors file: {error}') from error


def read_checkpoint(path: str, allow_pickle: bool = False) -> dict[str, Any]:
    """Read a checkpoint file without running code from it.

    Args:
        path: Local path, ``.pth`` or ``.safetensors``, or a URL (``https://...``, or
            ``hf-hub:OWNER/NAME`` of the Hugging Face Hub), which is downloaded once. Addresses
            need a checksum (``model-0123abcd.pth`` or ``...#sha256=...``) or end in
            ``#unverified``; it is optional for the Hub.
        allow_pickle: Unpickle objects of any class. This can run any code: trusted files only.

    Returns:
        The file's content.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If safetensors is not installed and is needed.
        ValueError: If the file is damaged, needs unpickling, holds no dict, or is downloaded
            without a checksum.
    """
    file = _local_path(str(path))
    if file.suffix == '.safetensors':
        return _read_safetensors(file)
    try:
        with _training_globals():
            content = torch.load(file, map_location='cpu', weights_only=not allow_pickle)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, LookupError) as error:
        foreign = re.search(
            r'GLOBAL \S+|Unsupported class \S+|unrecognized function .+', str(error)
        )
        if foreign and not allow_pickle:
            raise InputError(
                f'{path} holds objects besides tensors ({foreign[0]}). Unpickling can run any '
                'code. For a trusted file, set allow_pickle=True (init_cfg) or pass '
                '--allow-pickle.'
            ) from error
        reason = str(error).strip().split('\n')[0] or type(error).__name__
        raise InputError(
            f'{path} is damaged (truncated?) or not a PyTorch checkpoint: {reason}'
        ) from error
    except (ImportError, AttributeError) as error:
        raise InputError(f'{path} needs a class that is not installed: {error}') from error
    if not isinstance(content, dict):
        raise InputError(f'{path}: expected a dict, found {type(content).__name__}')
    return content


def tensors_of(checkpoint: dict[str, Any], path: str) -> StateDict:
    """Find a checkpoint's parameters: under ``state_dict``, under ``model``, or at the top level.

    Args:
        checkpoint: Content of a file.
        path: Its name, for errors.

    Returns:
        Tensors by name, without the ``module.`` of a parallel wrapper.

    Raises:
        ValueError: If there are no tensors.
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
        raise InputError(f'{path} holds no tensors; found the keys {list(checkpoint)[:5]}')
    return state


def check_values(state: StateDict, target: StateDict, path: str) -> None:
    """Check that floating-point values of a model get finite floating-point values.

    Args:
        state: Tensors of a file, by the model's names.
        target: Tensors of the model. Buffers that are not finite there either, such as masks of
            attention, are not checked.
        path: Name of the file, for errors.

    Raises:
        ValueError: If there are other values; names the first tensor.
    """
    for key, value in state.items():
        expected = target.get(key)
        if not isinstance(value, Tensor) or expected is None or not expected.is_floating_point():
            continue
        if not value.is_floating_point():
            raise InputError(f'{path}: {key} is {value.dtype}; expected floating-point numbers')
        if not _is_finite(value) and (expected.is_meta or _is_finite(expected)):
            raise InputError(f'{path}: {key} holds NaN or infinity; expected finite numbers')


def _is_finite(value: Tensor) -> bool:
    value = getattr(value, 'to_local', lambda: value)()  # the own part of a sharded tensor
    return bool(torch.isfinite(value).all())


def sample(keys: list[str], state: StateDict, count: int = 4) -> str:
    """List a few keys with their shapes, for error messages."""
    shown = [f'{key} {tuple(state[key].shape)}' for key in keys[:count]]
    return ', '.join(shown + [f'and {len(keys) - count} more'] * (len(keys) > count)) or 'none'


def write_checkpoint(content: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint in the format that its suffix names.

    Args:
        content: Content of the file. ``.safetensors`` keeps only the tensors of ``tensors_of``
            and the class names in ``meta``.
        path: File to write, atomically; its folder is created.

    Raises:
        ValueError: If the file has another suffix.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f'{path}: expected a name that ends with {" or ".join(SUFFIXES)}')
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        _write(content, path, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write(content: dict[str, Any], path: Path, partial: Path) -> None:
    """Write the format that ``path`` names into another file."""
    if path.suffix == '.safetensors':
        from safetensors.torch import save_file

        # cloned, because safetensors rejects tensors that share memory
        state = {k: v.clone().contiguous() for k, v in tensors_of(content, str(path)).items()}
        classes = content.get('meta', {}).get('dataset_meta', {}).get('classes', ())
        save_file(state, partial, dict(format='pt', classes=json.dumps(classes)))
    else:
        torch.save(content, partial)
