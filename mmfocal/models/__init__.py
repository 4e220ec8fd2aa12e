# SPDX-License-Identifier: Apache-2.0
"""The backbone and its checkpoint reader. They need PyTorch and MMEngine only."""

from .focal_transformer import FocalTransformer
from .pretrained import FocalPretrained, SwinPretrained

__all__ = ['FocalPretrained', 'FocalTransformer', 'SwinPretrained']
