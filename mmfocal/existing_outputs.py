# SPDX-License-Identifier: Apache-2.0
"""One rule for existing outputs.

A file that a command line names is kept: the command fails unless ``--overwrite`` is set. Folders
of results are reused: a line says that files of the same name are replaced. Inputs are never
replaced.
"""

import os
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmfocal.errors import ExistingFileError

StrPath = str | Path


def add_overwrite_argument(parser: ArgumentParser) -> None:
    """Add ``--overwrite``.

    Args:
        parser: Gets the option.
    """
    parser.add_argument('--overwrite', action='store_true', help='replace existing files')


def check_outputs(
    paths: Iterable[StrPath], overwrite: bool, inputs: Iterable[StrPath] = ()
) -> None:
    """Check that files may be written.

    Args:
        paths: Files to write.
        overwrite: Whether existing ones may be replaced.
        inputs: Files that must stay.

    Raises:
        FileExistsError: If a file exists already, or is an input.
        IsADirectoryError: If a path is a folder.
    """
    for path in paths:
        check_not_inputs([path], inputs)
        if os.path.isdir(path):
            raise IsADirectoryError(f'{path} is a folder; expected the name of a file')
        if os.path.lexists(path) and not overwrite:
            raise ExistingFileError(f'{path} exists; --overwrite replaces it')


def check_not_inputs(paths: Iterable[StrPath], inputs: Iterable[StrPath]) -> None:
    """Check that no output replaces an input.

    Args:
        paths: Files to write.
        inputs: Files that must stay; URLs and missing files are ignored.

    Raises:
        FileExistsError: If a path leads to an input.
    """
    outputs = {identity: path for path in paths if (identity := _identity(path))}
    for each in inputs if outputs else ():
        if (identity := _identity(each)) in outputs:
            raise ExistingFileError(
                f'{outputs[identity]} is the input {each}; choose another output'
            )


def _identity(path: StrPath) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # missing, a URL, or no valid name
        return None
    return found.st_dev, found.st_ino


def replacement(path: StrPath) -> str | None:
    """Describe what a reused output loses.

    Args:
        path: File or folder to be written.

    Returns:
        A line to print; None if the output is new.
    """
    if os.path.isdir(path) and os.listdir(path):
        return f'{path} is not empty: files of the same name are replaced'
    return f'{path} exists and is replaced' if os.path.isfile(path) else None


@contextmanager
def restored_on_failure(paths: Iterable[StrPath]) -> Iterator[None]:
    """Put files back as they were if the block fails; files that are new are removed.

    Args:
        paths: Files that the block writes.
    """
    before = {
        file: file.read_bytes() if file.is_file() else None for file in (Path(p) for p in paths)
    }
    try:
        yield
    except BaseException:
        for file, content in before.items():
            if content is None:
                file.unlink(missing_ok=True)
            else:
                file.write_bytes(content)
        raise
