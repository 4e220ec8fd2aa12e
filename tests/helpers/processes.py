# SPDX-License-Identifier: Apache-2.0
"""Test bodies that run in several processes of one gloo group."""

import gc
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed as dist
from torch.multiprocessing import spawn


def _join_group(rank: int, ranks: int, store: Path, body: Callable, args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', f'file://{store}', rank=rank, world_size=ranks)
    body(rank, *args)
    # A DDP model that outlives the group destroys it without releasing the GIL. A thread of gloo
    # may wait for the GIL to free a gathered tensor (pytorch/pytorch#56297). Therefore models are
    # freed first.
    gc.collect()
    dist.destroy_process_group()


def run_in_processes(body: Callable, folder: Path, *args, ranks: int = 2) -> None:
    """Call ``body(rank, *args)`` in several processes that meet in ``folder``.

    The processes are daemons, so they end with a test that runs out of time.
    """
    arguments = (ranks, folder / f'store{ranks}', body, args)
    spawn(_join_group, arguments, nprocs=ranks, daemon=True)
