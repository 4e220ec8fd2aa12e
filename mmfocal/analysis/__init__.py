# SPDX-License-Identifier: Apache-2.0
"""What a run or a model amounts to."""
