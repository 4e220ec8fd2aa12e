# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of focal attention, forward and backward.

A program computes one head. Keys form square *regions*, one of the fine map and one of each coarse
map; what a kernel must know of a region are its constants:

    SIZE      side of the region in keys (R or F); keys are counted row-major: their *place*
    STEP      distance between the regions of adjacent windows
    MARGIN    by how much a region starts before its window
    WRAPPED   whether the map continues on its far side (fine) or with masked zeros (coarse)
    SHIFT     by how much the map was rolled; 0 for coarse regions, which know no seam

Block values are ``(BLOCK_Q, BLOCK_D)`` for queries, ``(BLOCK_K, BLOCK_D)`` for keys and
``(BLOCK_Q, BLOCK_K)`` for logits. All blocks are powers of two: queries beyond ``w*w``, keys
beyond the region and channels beyond ``d`` are loaded as zeros and never stored; the weights of
keys that do not exist are zero, because their logits are -inf.

Dot products take their operands as they lie in memory and sum in the dtype of the bias. Offsets
within an image fit 32 bits, or the call is refused; offsets of an image need not.

Importing this imports Triton. See ``geometry`` for the shape legend.
"""

from .forward import forward_kernel
from .key_gradients import key_gradient_kernel, window_gradient_kernel
from .query_gradient import query_gradient_kernel

__all__ = [
    'forward_kernel',
    'key_gradient_kernel',
    'query_gradient_kernel',
    'window_gradient_kernel',
]
