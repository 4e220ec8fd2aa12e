# SPDX-License-Identifier: Apache-2.0
"""Find bad input before training starts, and say which file and key of the config to mend."""

from .data import check_inputs
from .files import check_checkpoint
from .widths import check_widths

__all__ = ['check_checkpoint', 'check_inputs', 'check_widths']
