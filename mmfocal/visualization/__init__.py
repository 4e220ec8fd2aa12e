# SPDX-License-Identifier: Apache-2.0
"""Pictures of data, predictions and training curves."""
