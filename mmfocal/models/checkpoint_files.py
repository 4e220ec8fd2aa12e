# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: reading them without running code from them, and finding their tensors."""

import hashlib
import json
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
from mmfocal.errors import MissingFileError

StateDict = dict[str, Tensor]

SUFFIXES = ('.pth', '.safetensors')
HUB = 'hf-hub:'  # timm's prefix
_NAMED_HASH = re.compile(r'-([0-9a-f]{8,64})\.\w+$')  # as in model-0123abcd.pth


def _history_method(owner: type, name: str) -> Any:
    """Replace ``getattr`` in a checkpoint: only a HistoryBuffer's statistics are allowed."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise UnpicklingError(f'GLOBAL builtins.getattr({owner!r}, {name!r}) is not allowed')
    return getattr(owner, name)


def _training_globals() -> AbstractContextManager:
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
    """Return the address of ``OWNER/NAME[@REVISION]``'s weights on the Hugging Face Hub."""
    repository, _, revision = name.partition('@')
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repository):
        raise ValueError(f'{HUB}{name}: expected {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION')
    endpoint = settings.value(settings.HF_ENDPOINT, 'https://huggingface.co').rstrip('/')
    return f'{endpoint}/{repository}/resolve/{revision or "main"}/model.safetensors'


def split_checksum(address: str) -> tuple[str, str]:
    """Split the SHA-256 off an address.

    Args:
        address: ``https://...#sha256=...``, or one whose name has the first digits
            (``model-0123abcd.pth``, as in OpenMMLab's model zoos and ``torch.hub``).

    Returns:
        The address alone, and the digits; empty if there are none.
    """
    url, _, checksum = address.partition('#sha256=')
    named = _NAMED_HASH.search(url.split('?')[0])
    return url, checksum.lower() or (named[1] if named else '')


def download(address: str) -> Path:
    """Download once, into the folder of ``torch.hub``, and verify the checksum if there is one.

    Args:
        address: See ``split_checksum``.

    Raises:
        FileNotFoundError: If it cannot be downloaded.
        ValueError: If it has another checksum.
    """
    url, checksum = split_checksum(address)
    name = url.split('://', 1)[1].split('?')[0].replace('/', '_')  # the last part is not unique
    path = Path(torch.hub.get_dir(), 'checkpoints', name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), checksum or None)
        except OSError as error:
            raise FileNotFoundError(f'{address} cannot be downloaded: {error}') from error
        except RuntimeError as error:
            raise ValueError(f'{address} is another file than expected: {error}') from error
    elif checksum:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if not found.startswith(checksum):
            raise ValueError(f'{path} has the SHA-256 {found}, expected {checksum} from {address}')
    return path


def _local_path(name: str) -> Path:
    """Return the local path of the file; a remote file is downloaded first."""
    if name.startswith(HUB):
        repository, mark, checksum = name.removeprefix(HUB).partition('#')
        return download(f'{_hub_address(repository)}{mark}{checksum}')
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
        raise ImportError(f'{path} is read by safetensors: pip install safetensors') from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f'{path} is damaged or not a safetensors file: {error}') from error


def read_checkpoint(path: str, allow_pickle: bool = False) -> dict[str, Any]:
    """Read a checkpoint file without running code from it.

    Args:
        path: Local path, ``.pth`` or ``.safetensors``, or an address (``https://...``, or
            ``hf-hub:OWNER/NAME`` of the Hugging Face Hub), which is downloaded once. With a
            checksum (``model-0123abcd.pth`` or ``...#sha256=...``), the file is verified.
        allow_pickle: Unpickle objects of any class. This can run any code: trusted files only.

    Returns:
        The file's content.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If safetensors is not installed and is needed.
        ValueError: If the file is damaged, needs unpickling, or holds no dict.
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
            raise ValueError(
                f'{path} holds objects beside tensors ({foreign[0]}). Unpickling can run any '
                'code. For a trusted file, set allow_pickle=True (init_cfg) or pass '
                '--allow-pickle.'
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


def sample(keys: list[str], state: StateDict, count: int = 4) -> str:
    """A few keys with shapes, for errors."""
    shown = [f'{key} {tuple(state[key].shape)}' for key in keys[:count]]
    return ', '.join(shown + [f'and {len(keys) - count} more'] * (len(keys) > count)) or 'none'


def write_checkpoint(content: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint in the format that its suffix names.

    Args:
        content: Content of the file. ``.safetensors`` keeps only the tensors of ``tensors_of``
            and the class names in ``meta``.
        path: File to write, atomically; its folder is created.

    Raises:
        ValueError: If the suffix is another one.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f'{path}: expected a name that ends with {" or ".join(SUFFIXES)}')
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.partial')
    if path.suffix == '.safetensors':
        from safetensors.torch import save_file

        # cloned, because safetensors rejects tensors that share memory
        state = {k: v.clone().contiguous() for k, v in tensors_of(content, str(path)).items()}
        classes = content.get('meta', {}).get('dataset_meta', {}).get('classes', ())
        save_file(state, partial, dict(format='pt', classes=json.dumps(classes)))
    else:
        torch.save(content, partial)
    partial.replace(path)
