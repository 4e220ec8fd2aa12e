# SPDX-License-Identifier: Apache-2.0
"""The version, readable without importing the package (setup.py does)."""

__version__ = '0.2.0'
