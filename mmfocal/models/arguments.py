# SPDX-License-Identifier: Apache-2.0
"""Checks of the backbone's arguments; errors name the argument, its value and what is allowed."""

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from mmfocal.ops.focal_attention import FocalGeometry
from mmfocal.ops.focal_attention.api import check_impl
from mmfocal.ops.focal_attention.geometry import find_error

POOL_METHODS = ('fc', 'conv', 'mean', 'max', 'none')
EXPAND_LAYERS = ('all', 'even', 'odd')
ARCH_KEYS = ('embed_dims', 'depths', 'num_heads')


def is_int(value: object) -> TypeGuard[int]:
    """Return whether the value is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether the value is an int or a float and not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def require(condition: bool, name: str, allowed: str, value: object) -> None:
    """Raise ValueError unless the condition holds."""
    if not condition:
        raise ValueError(f'{name} must be {allowed}, got {value!r}')


def parse_ints(name: str, value: Any, allowed: str) -> tuple[int, ...]:
    """Return a sequence of ints as a tuple."""
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
    require(is_sequence and all(map(is_int, value)), name, allowed, value)
    return tuple(value)


def per_stage(name: str, value: int | Sequence[int]) -> tuple[int, ...]:
    """Return an argument per stage; a single int applies to all four."""
    allowed = 'an int or four ints, one per stage'
    if isinstance(value, int) and is_int(value):
        return (value,) * 4
    values = parse_ints(name, value, allowed)
    require(len(values) == 4, name, allowed, value)
    return values


def parse_arch(
    arch: str | dict[str, Any], zoo: dict[str, dict[str, Any]]
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Return width, depths and heads of ``arch``, a name in ``zoo`` or a dict."""
    if isinstance(arch, str):
        require(arch in zoo, 'arch', f'one of {", ".join(zoo)}', arch)
        arch = zoo[arch]
    is_complete = isinstance(arch, dict) and set(arch) == set(ARCH_KEYS)
    require(is_complete, 'arch', f'a name or a dict of {", ".join(ARCH_KEYS)}', arch)
    width = arch['embed_dims']
    require(is_int(width) and width > 0, 'arch.embed_dims', 'a positive int', width)
    lists = []
    for key in ARCH_KEYS[1:]:
        values = parse_ints(f'arch.{key}', arch[key], 'four positive ints')
        is_valid = len(values) == 4 and min(values) > 0
        require(is_valid, f'arch.{key}', 'four positive ints', values)
        lists.append(values)
    depths, heads = lists
    for stage, stage_heads in enumerate(heads):
        dim = width * 2**stage
        allowed = f'a divisor of the {dim} channels of its stage'
        require(dim % stage_heads == 0, f'arch.num_heads[{stage}]', allowed, stage_heads)
    return width, depths, heads


def parse_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    """Return the stages whose maps are returned."""
    allowed = 'a sequence of ascending stages in 0..3'
    indices = parse_ints('out_indices', out_indices, allowed)
    is_valid = bool(indices) and set(indices) <= set(range(4))
    require(is_valid and sorted({*indices}) == [*indices], 'out_indices', allowed, indices)
    return indices


def parse_grid(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of a token grid; an int is used for both."""
    allowed = 'an int or (rows, columns), positive'
    grid = (size, size) if isinstance(size, int) else parse_ints(name, size, allowed)
    require(len(grid) == 2 and min(grid) > 0, name, allowed, size)
    return grid[0], grid[1]


def _is_rate(value: object) -> bool:
    return is_number(value) and 0 <= value < 1


def check_options(options: dict[str, Any], embed_dims: int) -> None:
    """Check the arguments that are used unchanged; the width limits ``mlp_ratio``."""
    least = 1 / embed_dims
    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        'in_channels': (lambda x: is_int(x) and x > 0, 'a positive int'),
        'frozen_stages': (lambda x: is_int(x) and -1 <= x <= 4, 'an int in -1..4'),
        'expand_layer': (EXPAND_LAYERS.__contains__, f'one of {", ".join(EXPAND_LAYERS)}'),
        'pool_method': (POOL_METHODS.__contains__, f'one of {", ".join(POOL_METHODS)}'),
        'drop_rate': (_is_rate, 'a number in [0, 1)'),
        'attn_drop_rate': (_is_rate, 'a number in [0, 1)'),
        'drop_path_rate': (_is_rate, 'a number in [0, 1)'),
        'mlp_ratio': (
            lambda x: is_number(x) and x >= least,
            f'a number of at least 1 / embed_dims = {least}',
        ),
        'qk_scale': (
            lambda x: not x or (is_number(x) and x > 0),
            'positive, or None, False or 0 for the default',
        ),
        'layer_scale_init': (lambda x: x is None or is_number(x), 'a number or None'),
    }
    for name, (is_valid, allowed) in checks.items():
        require(is_valid(options[name]), name, allowed, options[name])
    check_impl(options['attn_impl'])


def stage_geometries(
    window_size: int | Sequence[int],
    focal_levels: int | Sequence[int],
    focal_windows: int | Sequence[int],
    expand_sizes: int | Sequence[int],
) -> list[FocalGeometry]:
    """Return the geometry of each stage."""
    arguments = dict(
        window_size=('window_size', window_size),
        expand_size=('expand_sizes', expand_sizes),
        focal_window=('focal_windows', focal_windows),
        focal_level=('focal_levels', focal_levels),
    )
    values = {field: per_stage(*argument) for field, argument in arguments.items()}
    geometries = []
    for stage, settings in enumerate(zip(*values.values())):
        error = find_error(*settings)
        if error is not None:
            field, message = error
            raise ValueError(f'{arguments[field][0]}[{stage}] {message}')
        geometries.append(FocalGeometry(*settings))
    return geometries
