# SPDX-License-Identifier: Apache-2.0
"""Backends of focal attention. They share ``geometry`` and never import each other."""
