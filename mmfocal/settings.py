# SPDX-License-Identifier: Apache-2.0
"""The environment variables that this package reads; ``docs/environment.md`` describes them.

Variables of launchers, such as ``RANK``, are handled in :mod:`mmfocal.engine.machine`.
"""

import os
from collections.abc import Sequence

ATTN_IMPL = 'MMFOCAL_ATTN_IMPL'
CPU_LINEAR = 'MMFOCAL_CPU_LINEAR'
TRITON_TUNE = 'MMFOCAL_TRITON_TUNE'
TRITON_INTERPRET = 'TRITON_INTERPRET'  # Triton's own
NAMES = (ATTN_IMPL, CPU_LINEAR, TRITON_TUNE, TRITON_INTERPRET)


def choice(name: str, allowed: Sequence[str]) -> str:
    """The value of a variable; ``'auto'`` if it is empty or not set.

    Raises:
        ValueError: If the value is not allowed.
    """
    value = os.environ.get(name) or 'auto'
    if value not in allowed:
        raise ValueError(
            f'environment variable {name} must be one of {", ".join(allowed)}, got {value!r}'
        )
    return value


def is_on(name: str) -> bool:
    """Whether a switch is on, by the words that Triton accepts."""
    return os.environ.get(name, '').lower() in ('1', 'true', 'yes', 'on', 'y')


def current() -> dict[str, str]:
    """Every variable with its value, or ``'not set'``."""
    return {name: os.environ.get(name, 'not set') for name in NAMES}
