# SPDX-License-Identifier: Apache-2.0
"""Shipped configs by name, both in a checkout and in an installed wheel."""

from difflib import get_close_matches
from pathlib import Path

from .errors import MissingFileError

_PACKAGE = Path(__file__).resolve().parent


def data_root() -> Path:
    """Return the folder that contains ``configs``, ``tools`` and ``model-index.yml``.

    Returns:
        The checkout, or ``mmfocal/.mim`` of an installed wheel.

    Raises:
        FileNotFoundError: If the package is neither, so that it has no configs.
    """
    places = (_PACKAGE.parent, _PACKAGE / '.mim')
    for place in places:
        if (place / 'model-index.yml').is_file() and (place / 'configs').is_dir():
            return place
    raise FileNotFoundError(
        f'mmfocal has no configs: neither {places[0]} nor {places[1]} holds configs and '
        'model-index.yml; install mmfocal with pip, which copies them'
    )


def list_configs() -> list[str]:
    """List the shipped configs.

    Returns:
        Sorted names for ``config``, e.g. ``'detection/focal_t_maskrcnn_3x'``, without bases.
    """
    root = data_root() / 'configs'
    names = (path.relative_to(root).with_suffix('') for path in root.rglob('*.py'))
    return sorted(name.as_posix() for name in names if '_base_' not in name.parts)


def config(name: str) -> str:
    """Find a shipped config.

    The path can be used wherever a config file is expected: in ``_base_``, in the hosts' tools
    and in their inferencers.

    Args:
        name: Name such as ``'detection/focal_t_maskrcnn_3x'`` or its last part; ``.py`` and a
            leading ``mmfocal::`` are optional. Bases are found by their full name
            (``'_base_/schedules/coco_3x'``).

    Returns:
        Absolute path of the file.

    Raises:
        FileNotFoundError: If there is no such config; suggests similar names.
    """
    wanted = name.removeprefix('mmfocal::').removesuffix('.py')
    path = data_root() / 'configs' / f'{wanted}.py'
    if path.is_file():
        return str(path)
    names = list_configs()
    found = [known for known in names if known.rpartition('/')[2] == wanted]
    if len(found) == 1:
        return str(data_root() / 'configs' / f'{found[0]}.py')
    similar = found or get_close_matches(wanted, [*names, *(n.split('/')[-1] for n in names)], 5)
    hint = f'similar: {", ".join(similar)}' if similar else 'see mmfocal.zoo.list_configs()'
    raise MissingFileError(f'mmfocal has no config {name!r}; {hint}')


def find_config(name_or_path: str | Path) -> str:
    """Return the path of a config file, or of a shipped config by name.

    Args:
        name_or_path: Path of a file, or a name for ``config``.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: If it is neither.
    """
    if Path(name_or_path).is_file():
        return str(name_or_path)
    try:
        return config(str(name_or_path))
    except FileNotFoundError as error:
        raise MissingFileError(f'config {name_or_path} does not exist; {error}') from None
