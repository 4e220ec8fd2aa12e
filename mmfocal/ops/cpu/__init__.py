# SPDX-License-Identifier: Apache-2.0
"""What makes CPUs fast: chunks that fit a cache, memory that is kept, oneDNN's products."""
