# SPDX-License-Identifier: Apache-2.0
"""The backbone and its checkpoint reader. They need PyTorch and MMEngine only."""

from functools import partial

from mmengine.logging import print_log

from mmfocal.ops.focal_attention import api

from .focal_transformer import FocalTransformer
from .pretrained import FocalPretrained, SwinPretrained

api.announce = partial(print_log, logger='current')  # into the log of the run

__all__ = ['FocalPretrained', 'FocalTransformer', 'SwinPretrained']
