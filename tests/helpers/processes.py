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
    # A DDP model that outlives the group ends it without releasing the GIL, which a thread of gloo
    # may be waiting for to free a gathered tensor (pytorch/pytorch#56297): the models go first.
    gc.collect()
    dist.destroy_process_group()


def run_in_processes(body: Callable, folder: Path, *args, ranks: int = 2) -> None:
    """Call ``body(rank, *args)`` in several processes that meet in ``folder``.

    They are daemons, so a test that runs out of time takes them along.
    """
    arguments = (ranks, folder / f'store{ranks}', body, args)
    spawn(_join_group, arguments, nprocs=ranks, daemon=True)
