# SPDX-License-Identifier: Apache-2.0
"""Operators for CPUs: chunks that fit the cache, reused memory, linear layers by oneDNN."""
