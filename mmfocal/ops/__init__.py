# SPDX-License-Identifier: Apache-2.0
"""Operators of mmfocal. They need PyTorch only."""
