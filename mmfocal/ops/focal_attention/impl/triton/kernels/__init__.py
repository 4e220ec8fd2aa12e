# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of focal attention, forward and backward.

A program computes one head. All keys of a window are square regions, see ``geometry``; a block of
keys belongs to one region, and all blocks of all regions are counted through. What differs between
the stages of a model, such as heads and regions, is an argument, so that one compiled kernel
serves them all; constants are the window, the head and what the hardware asks for.

Block values are ``(BLOCK_Q, BLOCK_D)`` for queries, ``(BLOCK_K, BLOCK_D)`` for keys and
``(BLOCK_Q, BLOCK_K)`` for logits. All blocks are powers of two: queries beyond ``w*w`` repeat the
last one and are never stored; keys beyond the region and channels beyond ``d`` are loaded as
zeros; the weights of keys that do not exist are zero, because their bias is ``NO_KEY``. The
gradient of such columns of the bias need not be written: nobody reads it.

Dot products take their operands as they lie in memory and sum in the dtype of the bias. Logits and
their log-sum count in powers of two, the exponential that the hardware has. Offsets within an
image fit 32 bits, or the call is refused; offsets of an image need not.

Importing this imports Triton. See ``geometry`` for the shape legend.
"""
