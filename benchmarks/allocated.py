# SPDX-License-Identifier: Apache-2.0
"""Memory of the tensors of a step on CPUs.

Unlike resident memory, it is the same in every process, because it does not depend on how the C
library reuses freed memory. Scratch memory of oneDNN and MKL is not included.
"""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_of(step: Callable[[], Any]) -> int:
    """Return the peak of the memory that a step allocates, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())['traceEvents']
    return max(event['args']['Total Allocated'] for event in events if event['name'] == '[memory]')
