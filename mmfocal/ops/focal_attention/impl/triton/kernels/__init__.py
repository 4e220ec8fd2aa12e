# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of focal attention, forward and backward.

A program computes one head. All keys of a window are square regions, see ``geometry``; a block of
keys belongs to one region, and the blocks of all regions are numbered consecutively. Values that
differ between the stages of a model, such as heads, regions and scale, are arguments, so that all
stages share one compiled kernel. Constants are the window, the head size and hardware parameters.

Block values are ``(BLOCK_Q, BLOCK_D)`` for queries, ``(BLOCK_K, BLOCK_D)`` for keys and
``(BLOCK_Q, BLOCK_K)`` for logits. All block sizes are powers of two. Queries beyond ``w*w`` repeat
the last one and are never stored; keys beyond the region and channels beyond ``d`` are loaded as
zeros. The weights of padding keys are zero, because their bias is ``NO_KEY``. The gradient of
padding columns of the bias is neither written nor read.

Dot products use the operands' dtype in memory and accumulate in the dtype of the bias. Logits and
their log-sum-exp are in base 2, for which the hardware has an exponential. Offsets within an image
are 32-bit integers (larger images are rejected); offsets of images are 64-bit integers.

A kernel takes separate arguments and passes them on in named tuples, see ``bundle``.

Importing this module imports Triton. See ``geometry`` for the shape legend.
"""
