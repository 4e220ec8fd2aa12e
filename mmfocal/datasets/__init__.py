# SPDX-License-Identifier: Apache-2.0
"""Data that this package makes itself."""
