# SPDX-License-Identifier: Apache-2.0
"""Environment variables of this package; ``docs/environment.md`` describes them.

Variables of launchers, such as ``RANK``, are handled in :mod:`mmfocal.engine.machine`.
"""

import os
from collections.abc import Sequence

ATTN_IMPL = 'MMFOCAL_ATTN_IMPL'
CPU_LINEAR = 'MMFOCAL_CPU_LINEAR'
TRITON_TUNE = 'MMFOCAL_TRITON_TUNE'
TRITON_INTERPRET = 'TRITON_INTERPRET'  # Triton's own
HF_ENDPOINT = 'HF_ENDPOINT'  # the Hugging Face Hub's own
NAMES = (ATTN_IMPL, CPU_LINEAR, TRITON_TUNE, TRITON_INTERPRET, HF_ENDPOINT)


def choice(name: str, allowed: Sequence[str]) -> str:
    """Return the value of a variable; ``'auto'`` if it is empty or not set.

    Raises:
        ValueError: If the value is not allowed.
    """
    chosen = value(name, 'auto')
    if chosen not in allowed:
        raise ValueError(
            f'environment variable {name} must be one of {", ".join(allowed)}, got {chosen!r}'
        )
    return chosen


def value(name: str, default: str) -> str:
    """Return the value of a variable; the default if it is empty or not set."""
    return os.environ.get(name) or default


def is_on(name: str) -> bool:
    """Return whether a switch is on, by the values that Triton accepts."""
    return os.environ.get(name, '').lower() in ('1', 'true', 'yes', 'on', 'y')


def current() -> dict[str, str]:
    """Return every variable with its value, or ``'not set'``."""
    return {name: os.environ.get(name, 'not set') for name in NAMES}
