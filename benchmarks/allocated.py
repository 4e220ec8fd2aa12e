# SPDX-License-Identifier: Apache-2.0
"""Memory of the tensors of a step on CPUs.

Unlike resident memory, it is the same in every process: how the C library reuses freed memory does
not count. Scratch memory of oneDNN and MKL does not count either.
"""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_of(step: Callable[[], Any]) -> int:
    """Return the peak in bytes of what a step allocates, without what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())['traceEvents']
    return max(event['args']['Total Allocated'] for event in events if event['name'] == '[memory]')
