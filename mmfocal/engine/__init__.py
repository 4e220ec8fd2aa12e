# SPDX-License-Identifier: Apache-2.0
"""What ``tools/train.py`` and ``tools/test.py`` share; needs torch and MMEngine alone."""

from .batch_size import describe_batch_size
from .checks import check_checkpoint, check_inputs, check_widths
from .launch import add_common_arguments, build_runner, load_config, read_config
from .machine import adapt_to_machine
from .resume import ValidateFinished, latest_checkpoint
from .skeleton import build_skeleton

__all__ = [
    'ValidateFinished',
    'adapt_to_machine',
    'add_common_arguments',
    'build_runner',
    'build_skeleton',
    'check_checkpoint',
    'check_inputs',
    'check_widths',
    'describe_batch_size',
    'latest_checkpoint',
    'load_config',
    'read_config',
]
