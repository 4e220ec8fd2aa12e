# SPDX-License-Identifier: Apache-2.0
"""The backbone and its checkpoint reader. They need PyTorch and MMEngine only."""

from .focal_transformer import FocalTransformer

__all__ = ['FocalTransformer']
