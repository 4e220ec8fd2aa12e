# SPDX-License-Identifier: Apache-2.0
"""Are files and folders where the config says?"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def check_checkpoint(path: str) -> None:
    """Check that a checkpoint given on the command line exists.

    Args:
        path: Local path, or an address such as ``https://...``, which is not looked up.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not is_remote(path) and not Path(path).is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')


def is_remote(path: str) -> bool:
    """Tell addresses such as ``s3://...``, which are not looked up, from paths.

    Args:
        path: Either.
    """
    return '://' in path


def join(root: str, path: str) -> str:
    """Join a data root and a path; an address stays as it is.

    Args:
        root: ``data_root``.
        path: Relative to it, absolute, or an address.
    """
    return path if is_remote(path) else os.path.join(root, path)


def require_file(key: str, path: str, hint: str) -> None:
    """Check that a file exists, unless it is remote.

    Args:
        key: Where the config names it.
        path: The file.
        hint: How to get it.

    Raises:
        FileNotFoundError: If it does not.
    """
    if not is_remote(path) and not os.path.isfile(path):
        raise FileNotFoundError(f'{key}: expected a file at {path}\n{hint}')


def require_folder(key: str, path: str, hint: str) -> None:
    """Check that a folder exists and that some file lies in it or below, unless it is remote.

    Args:
        key: Where the config names it.
        path: The folder.
        hint: How to get it.

    Raises:
        FileNotFoundError: If it does not exist or holds no file.
    """
    if is_remote(path):
        return
    if not any(files for _, _, files in os.walk(path, followlinks=True)):
        raise FileNotFoundError(f'{key}: expected a folder with files at {path}\n{hint}')


def missing_files(paths: Iterable[str]) -> Iterator[str]:
    """Yield the paths that do not exist.

    Each folder is listed once, which is much quicker than a look-up per file on network disks.

    Args:
        paths: Files to look for.
    """
    listed: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in listed[folder]:
            yield path
