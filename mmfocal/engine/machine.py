# SPDX-License-Identifier: Apache-2.0
"""Adapt configs for NVIDIA GPUs to machines without a GPU."""

import gc
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process

from mmfocal import settings


def adapt_to_machine(cfg: Config) -> None:
    """Replace settings that are unsupported on CPUs, in place; no change with an accelerator.

    Mixed precision becomes fp32 and SyncBN becomes BN; each change prints one line. With a
    launcher, the process group is started here with gloo, because MMEngine would select a CUDA
    device. The model wrapper gets no device, even if the config sets the wrapper.

    Args:
        cfg: Config with ``launcher`` set.
    """
    if get_device() != 'cpu':
        return
    if cfg.get('launcher', 'none') != 'none':
        _start_gloo(cfg.launcher)
        wrapper = cfg.get('model_wrapper_cfg') or dict(  # MMEngine's default
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
        cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
        _replace_device_of_strategy(cfg)
    if _replace_amp(cfg):
        _say('No GPU: mixed precision (AMP) is replaced by fp32.')
    if _replace_sync_bn(cfg):
        _say('No GPU: SyncBN is replaced by BN.')


def _replace_device_of_strategy(cfg: Config) -> None:
    """Give the wrapper of a FlexibleRunner's DDP no device."""
    if cfg.get('runner_type') != 'FlexibleRunner':
        return
    strategy = cfg.get('strategy') or dict(type='DDPStrategy')  # MMEngine's default
    if kind_of(strategy) == 'DDPStrategy':
        wrapper = strategy.get('model_wrapper') or cfg.model_wrapper_cfg
        strategy = dict(strategy, model_wrapper=dict(wrapper, device_ids=None))
    cfg.strategy = strategy


def _say(line: str) -> None:
    if is_main_process():
        print(line, flush=True)


def is_first_process(launcher: str) -> bool:
    """Return whether this is rank 0, by the launcher's variables; there is no process group yet.

    Args:
        launcher: ``none``, ``pytorch``, ``slurm`` or ``mpi``.
    """
    return settings.rank(launcher) == 0


def tell(cfg: Config, line: str) -> None:
    """Print a line in the first process, before the process group is started.

    Args:
        cfg: Config whose ``launcher`` may be set.
        line: What to print.
    """
    if is_first_process(cfg.get('launcher', 'none')):
        print(line, flush=True)


def _start_gloo(launcher: str) -> None:
    if not dist.is_initialized():
        settings.set_rendezvous(launcher)
        dist.init_process_group('gloo')


def leave_process_group() -> None:
    """Destroy the process group of a worker that may be restarted; models must have been freed.

    Such a worker hosts the store of its group. The threads of the store can abort the process when
    it exits.
    """
    if dist.is_initialized() and settings.is_on(settings.STORE_PER_WORKER):
        gc.collect()  # runners are part of cycles
        dist.barrier()  # the store is needed until every process reaches this line
        dist.destroy_process_group()


def _replace_amp(cfg: Config) -> bool:
    wrapper = cfg.get('optim_wrapper') or {}
    amp = wrapper.get('type') == 'AmpOptimWrapper'
    if amp:
        wrapper.type = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
    for loop in (cfg.get('val_cfg') or {}, cfg.get('test_cfg') or {}):
        amp = bool(loop.pop('fp16', False)) or amp
    return amp


def _replace_sync_bn(cfg: Config) -> bool:
    found = [node for node in dicts_in(dict(cfg)) if node.get('type') == 'SyncBN']
    for node in found:
        node['type'] = 'BN'
    return bool(found) | bool(cfg.pop('sync_bn', None))


def dicts_in(node: Any) -> Iterator[dict]:
    """Yield every dict in nested dicts, lists and tuples, outer ones first.

    Args:
        node: Nested value.
    """
    if isinstance(node, dict):
        yield node
        node = node.values()
    elif not isinstance(node, (list, tuple)):
        return
    for child in node:
        yield from dicts_in(child)


def kind_of(part: dict) -> str:
    """Return the type of a part of a config without its scope, such as ``CocoDataset``.

    Args:
        part: The part.
    """
    return str(part.get('type')).split('.')[-1]
