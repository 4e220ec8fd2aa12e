# SPDX-License-Identifier: Apache-2.0
"""From a command line to a runner, alike for detection, segmentation and classification."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmfocal.zoo import find_config

from .machine import dicts_in
from .quiet import QuietRunner


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add the options that training and testing share.

    Args:
        parser: Gets ``--work-dir --amp --cfg-options --launcher --local-rank``.
    """
    parser.add_argument('--work-dir', help='where logs and results go (./work_dirs/<config name>)')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='settings to override: key=value, lists as key="[a,b]" or key=a,b',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch passes this option, torch.distributed.run the variable
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def read_config(path: str | Path) -> Config:
    """Read a config file, which may have bases of this package: ``_base_ = 'mmfocal::...'``.

    MMEngine would look for everything in such a base, say ``EncoderDecoder``, in the scope of the
    package that it comes from. These configs have the scopes of their host libraries, so the mark
    is removed, and ``default_scope`` decides as it does for the file itself.

    Args:
        path: Config file.

    Returns:
        The config.
    """
    cfg = Config.fromfile(path)
    for node in dicts_in(cfg._cfg_dict):
        if node.get('_scope_') == 'mmfocal':
            del node['_scope_']
    return cfg


def load_config(args: Namespace) -> Config:
    """Read the config that a command line names and apply the options of ``add_common_arguments``.

    Args:
        args: Parsed options; ``config`` is the file, or the name of a shipped config.

    Returns:
        The config with ``launcher`` and ``work_dir`` set.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If the config does not say which host library it belongs to.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(find_config(args.config))
    cfg.merge_from_dict(args.cfg_options)
    if cfg.get('default_scope') is None:
        raise ValueError(
            f"{args.config}: 'default_scope' is missing; expected 'mmdet', 'mmseg' or 'mmpretrain'"
        )
    cfg.launcher = args.launcher
    default_dir = cfg.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))
    cfg.work_dir = args.work_dir or default_dir
    if cfg.default_scope == 'mmpretrain':
        _set_dataloader_defaults(cfg)
    return cfg


def _set_dataloader_defaults(cfg: Config) -> None:
    """Give classification loaders what mmpretrain's own tools give them."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader is not None:
            loader.setdefault('collate_fn', dict(type='default_collate'))
            loader.setdefault('pin_memory', torch.cuda.is_available())
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)


def build_runner(cfg: Config) -> Runner:
    """Build the runner that a config asks for.

    Args:
        cfg: Complete config.

    Returns:
        MMEngine's runner, less talkative, or the one of ``runner_type``.
    """
    return RUNNERS.build(cfg) if 'runner_type' in cfg else QuietRunner.from_cfg(cfg)
