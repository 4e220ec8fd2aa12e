# SPDX-License-Identifier: Apache-2.0
"""Make a config written for NVIDIA GPUs run on a machine without one."""

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process

# launcher -> variables that hold rank, world size and rank within the machine
RANK_VARIABLES = {
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def adapt_to_machine(cfg: Config) -> None:
    """Replace in place what cannot run on a CPU; with an accelerator nothing changes.

    Mixed precision becomes fp32 and SyncBN becomes BN, each with one printed line. A launcher's
    process group starts here with gloo, since MMEngine's own start selects a CUDA device, and the
    model wrapper, also one of the config, gets no device.

    Args:
        cfg: Config with ``launcher`` set.
    """
    if get_device() != 'cpu':
        return
    if cfg.get('launcher', 'none') != 'none':
        _start_gloo(cfg.launcher)
        wrapper = cfg.get('model_wrapper_cfg') or dict(  # what MMEngine takes without one
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
        cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    if _replace_amp(cfg):
        _say('No GPU: mixed precision (AMP) is replaced by fp32.')
    if _replace_sync_bn(cfg):
        _say('No GPU: SyncBN is replaced by BN.')


def _say(line: str) -> None:
    if is_main_process():
        print(line, flush=True)


def is_first_process(launcher: str) -> bool:
    """Ask the launcher's variables: MMEngine starts the process group only with the runner.

    Args:
        launcher: ``none``, ``pytorch``, ``slurm`` or ``mpi``.
    """
    variable, *_ = RANK_VARIABLES.get(launcher, ('RANK',))
    return launcher == 'none' or int(os.environ.get(variable, 0)) == 0


def tell(cfg: Config, line: str) -> None:
    """Print a line once, before the process group has started.

    Args:
        cfg: Config whose ``launcher`` may be set.
        line: What to print.
    """
    if is_first_process(cfg.get('launcher', 'none')):
        print(line, flush=True)


def _start_gloo(launcher: str) -> None:
    if dist.is_initialized():
        return
    if launcher in RANK_VARIABLES:
        for name, source in zip(
            ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'), RANK_VARIABLES[launcher], strict=True
        ):
            os.environ[name] = os.environ[source]
        os.environ.setdefault('MASTER_PORT', '29500')
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        nodes = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
        os.environ['MASTER_ADDR'] = subprocess.check_output(nodes, text=True).split()[0]
    dist.init_process_group('gloo')


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
    found = [node for node in dicts_in(cfg._cfg_dict) if node.get('type') == 'SyncBN']
    for node in found:
        node['type'] = 'BN'
    return bool(found) | bool(cfg.pop('sync_bn', None))


def dicts_in(node: Any) -> Iterator[dict]:
    """Yield every dict in nested dicts, lists and tuples, outer ones first.

    Args:
        node: Where to look.
    """
    if isinstance(node, dict):
        yield node
        node = node.values()
    elif not isinstance(node, (list, tuple)):
        return
    for child in node:
        yield from dicts_in(child)
