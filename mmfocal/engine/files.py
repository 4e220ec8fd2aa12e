# SPDX-License-Identifier: Apache-2.0
"""Files of a run: written atomically and read without running code from them."""

import os
import tarfile
from pathlib import Path
from typing import Any

import mmengine.runner.checkpoint as mmengine_checkpoint
from mmengine.fileio import LocalBackend, get_local_path, register_backend
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader

from mmfocal.errors import InputError
from mmfocal.models.checkpoint_files import download
from mmfocal.models.pretrained import read_checkpoint

from .checkpoints import SafeCheckpointHook
from .sharding import read_sharded


class AtomicBackend(LocalBackend):
    """MMEngine's local file backend with atomic writes."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a temporary file, then replace the old file.

        Args:
            obj: Content.
            filepath: The file.

        Raises:
            OSError: If the file cannot be written, for instance because the disk is full; the old
                file stays.
        """
        write_atomically(obj, Path(filepath))


def write_atomically(content: bytes, path: Path) -> None:
    """Write a temporary file, then replace the old file.

    Args:
        content: Content.
        path: The file.

    Raises:
        OSError: If the file cannot be written; the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(unfinished, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(
            error.errno, f'{error.strerror}; the existing file is unchanged', str(path)
        ) from error


def read_run_checkpoint(path: str | Path, allow_pickle: bool = False) -> dict[str, Any]:
    """Read a checkpoint of a run: a file, or the folder of a sharded run.

    Args:
        path: Local path.
        allow_pickle: Unpickle objects of any class: trusted files only.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the checkpoint is damaged or incomplete, or needs unpickling.
    """
    read = read_sharded if Path(path).is_dir() else read_checkpoint
    return read(str(path), allow_pickle)


def protect_files(allow_pickle: bool = False) -> None:
    """Make MMEngine's runs in this process write and read files safely.

    Args:
        allow_pickle: Unpickle objects of any class. This can run any code: trusted files only.
    """

    register_backend('local', AtomicBackend, force=True, prefixes='')
    HOOKS.register_module(name='CheckpointHook', module=SafeCheckpointHook, force=True)
    _protect_loaders(allow_pickle)
    if hasattr(tarfile, 'data_filter'):  # Python 3.10.12, 3.11.4 and later
        # archives of data sets that hosts download; names in them cannot leave the folder
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)


def _protect_loaders(allow_pickle: bool) -> None:
    """Replace those of MMEngine's loaders that unpickle."""

    def load_from_local(path: str, map_location: Any = None) -> dict:
        return read_run_checkpoint(path, allow_pickle)  # the runner moves tensors to its device

    def load_from_http(path: str, map_location: Any = None, **_: Any) -> dict:
        return read_checkpoint(local_copy(path), allow_pickle)

    def load_from_ceph(path: str, map_location: Any = None) -> dict:
        with get_local_path(path, backend_args=dict(backend='petrel')) as local:
            return read_checkpoint(str(local), allow_pickle)

    def load_from_pavi(path: str, map_location: Any = None) -> dict:
        raise InputError(f'{path}: pavi:// is not supported; download the file and name its path')

    def load_from_openmmlab(path: str, map_location: Any = None) -> dict:
        address = _openmmlab_address(path)
        is_remote = address.startswith(('http://', 'https://'))
        return (load_from_http if is_remote else load_from_local)(address)

    for prefixes, loader in (
        ('', load_from_local),
        (('http://', 'https://'), load_from_http),
        ((r'(\S+\:)?s3://', r'(\S+\:)?petrel://'), load_from_ceph),
        ('pavi://', load_from_pavi),
        (('open-mmlab://', 'openmmlab://'), load_from_openmmlab),
    ):
        CheckpointLoader.register_scheme(prefixes, loader, force=True)
    # the remaining schemes (torchvision://, modelzoo://, mmcls://) read by it
    mmengine_checkpoint.load_url = load_from_http


def _openmmlab_address(name: str) -> str:
    """Look up a URL, or a path below MMEngine's home, in OpenMMLab's list of models."""
    model = name.split('://', 1)[1]
    model = mmengine_checkpoint.get_deprecated_model_names().get(model, model)
    models = mmengine_checkpoint.get_external_models()
    if model not in models:
        raise InputError(f"{name}: unknown model of MMEngine's model zoo")
    address = models[model]
    if address.startswith(('http://', 'https://')):
        return address
    return os.path.join(mmengine_checkpoint._get_mmengine_home(), address)


def local_copy(address: str) -> str:
    """Download a file once and verify its checksum.

    Args:
        address: ``https://.../model-0123abcd.pth``, whose name has the first digits of its
            SHA-256, or any URL with ``#sha256=...`` or ``#unverified``.

    Returns:
        Path of the copy in PyTorch's hub folder.

    Raises:
        InputError: If the URL has no checksum, or if the file does not match it.
    """
    try:
        return str(download(address))
    except (OSError, ValueError) as error:
        raise InputError(str(error)) from error
