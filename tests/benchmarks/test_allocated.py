# SPDX-License-Identifier: Apache-2.0
"""Memory of tensors is counted to the byte."""

import torch
from allocated import peak_of


def test_counts_what_a_step_allocates_at_once() -> None:
    kept = torch.ones(1000)  # before the step: does not count

    def step() -> None:
        twice = torch.cat([kept, kept])
        del twice
        torch.cat([kept, kept, kept])

    assert peak_of(step) == 3 * kept.nbytes
