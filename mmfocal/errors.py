# SPDX-License-Identifier: Apache-2.0
"""Errors of input, which commands report in one line instead of by a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Raised for input on which a run would fail later or give wrong results."""


class ExistingFileError(InputError, FileExistsError):
    """Raised for an output that would replace an existing file."""


class MissingFileError(FileNotFoundError):
    """Raised for a config or checkpoint of the command line that does not exist."""


@contextmanager
def in_one_line() -> Iterator[None]:
    """End the program with ``error: ...`` and status 1 on an error of input; others pass."""
    try:
        yield
    except (InputError, MissingFileError) as error:
        sys.exit(f'error: {error}')
