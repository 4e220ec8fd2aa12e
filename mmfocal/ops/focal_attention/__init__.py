# SPDX-License-Identifier: Apache-2.0
"""Focal self-attention: one public function, several back ends that compute the same."""

from .api import IMPLS, focal_attention
from .geometry import FocalBias, FocalGeometry

__all__ = ['IMPLS', 'FocalBias', 'FocalGeometry', 'focal_attention']
