# SPDX-License-Identifier: Apache-2.0
"""Read config files; their errors name the file and the line."""

import sys
import traceback
from pathlib import Path

from mmengine.config import Config

from mmfocal.errors import InputError, MissingFileError

from .machine import dicts_in

# methods of MMEngine's Config that read one file, whose path is their local variable ``filename``
_READERS = ('_file2dict', '_parse_lazy_import')


def read_config(path: str | Path) -> Config:
    """Read a config file, which may have bases of this package: ``_base_ = 'mmfocal::...'``.

    MMEngine looks up types of such a base, such as ``EncoderDecoder``, in the scope of the package
    that the base comes from, ``_scope_``. Configs of this package use the scopes of their host
    libraries, so ``_scope_`` is removed and ``default_scope`` applies.

    Args:
        path: Config file.

    Returns:
        The config.

    Raises:
        FileNotFoundError: If there is no such file, or a base is missing.
        ValueError: If the file, a base or a module that they import raises an error; names the
            file and the line.
    """
    if not Path(path).is_file():
        raise MissingFileError(f'config {path} does not exist')
    try:
        cfg = Config.fromfile(path)
        nodes = list(dicts_in(dict(cfg)))  # imports what a config with imports names
    except Exception as error:  # a config is code, which may raise any
        kind = MissingFileError if isinstance(error, FileNotFoundError) else InputError
        raise kind(f'{_place_of(error, str(path))}: {_describe(error)}') from error
    for node in nodes:
        if node.get('_scope_') == 'mmfocal':
            del node['_scope_']
    return cfg


def _place_of(error: Exception, path: str) -> str:
    """Name the file that was read, which may be a base, and the line in it, if known."""
    read, line = [path], None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name in _READERS:
            read.append(str(frame.f_locals['filename']))
            line = None
        elif frame.f_code.co_filename == read[-1]:
            line = number
    if isinstance(error, FileNotFoundError) and line is None:
        read = [each for each in read if Path(each).is_file()]  # the one that names the missing
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f'{error.filename}, line {error.lineno}'  # perhaps a module that a config imports
    if isinstance(error, SyntaxError):
        line = error.lineno
    return read[-1] if line is None else f'{read[-1]}, line {line}'


def _describe(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f'syntax error: {error.msg}'
    if str(error).startswith('Failed to import custom modules') and error.__cause__:
        reason = error.__cause__.__context__ or error.__cause__
        return f'custom_imports: {reason}; is its folder in PYTHONPATH?'
    return f'{type(error).__name__}: {error}{_of_module(error)}'


def _of_module(error: Exception) -> str:
    """Name file and line of a module that a config imports and that raises an error."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    path = frame.f_code.co_filename
    # configs have no name; the libraries' own lines would not help
    is_module = '__name__' in frame.f_globals and Path(path).is_file()
    is_library = 'site-packages' in path or path.startswith(sys.base_prefix)
    return f' ({path}, line {line})' if is_module and not is_library else ''
