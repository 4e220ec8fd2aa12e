# SPDX-License-Identifier: Apache-2.0
"""Shared code of ``tools/train.py`` and ``tools/test.py``; needs torch and MMEngine only."""

from mmfocal.environment import require
from mmfocal.errors import InputError

require('mmengine.hooks')  # the first module that needs opencv

from .batch_size import describe_batch_size
from .checks import check_checkpoint, check_inputs, check_run, check_widths
from .config_files import read_config
from .launch import add_common_arguments, build_runner, load_config
from .layer_decay import LayerDecayOptimWrapperConstructor
from .machine import adapt_to_machine, leave_process_group
from .meta_model import build_meta_model
from .resume import ValidateFinished, latest_checkpoint
from .sharding import FullyShardStrategy

__all__ = [
    'FullyShardStrategy',
    'InputError',
    'LayerDecayOptimWrapperConstructor',
    'ValidateFinished',
    'adapt_to_machine',
    'add_common_arguments',
    'build_meta_model',
    'build_runner',
    'check_checkpoint',
    'check_inputs',
    'check_run',
    'check_widths',
    'describe_batch_size',
    'latest_checkpoint',
    'leave_process_group',
    'load_config',
    'read_config',
]
