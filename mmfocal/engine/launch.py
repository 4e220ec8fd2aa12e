# SPDX-License-Identifier: Apache-2.0
"""Command line, config and runner for detection, segmentation and classification."""

from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmfocal import settings
from mmfocal.errors import InputError
from mmfocal.zoo import find_config

from .checks import check_shape
from .config_files import read_config
from .options import KeyValues, merge_options, nearest, warn_of_misspelled
from .quiet import QUIET

_HOSTS = ('mmdet', 'mmseg', 'mmpretrain')


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add the options that training and testing share.

    Args:
        parser: Gets ``--work-dir --amp --cfg-options --allow-pickle --launcher --local-rank``.
    """
    parser.add_argument(
        '--work-dir', help='folder of logs and results (default: ./work_dirs/<config name>)'
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=KeyValues,
        default={},
        help='settings to override: key=value, lists as key="[a,b]" or key=a,b, tuples as '
        'key="(a,b)"; a list that replaces a tuple becomes a tuple. Values of text settings are '
        'not parsed; quote other text with commas: "key=\'a,b\'"',
    )
    parser.add_argument(
        '--allow-pickle',
        action='store_true',
        help='unpickle any object in checkpoints, which can run any code; only for trusted files',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch passes this option, torch.distributed.run sets the variable
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def load_config(args: Namespace) -> Config:
    """Read the config of a command line and apply the options of ``add_common_arguments``.

    Args:
        args: Parsed options; ``config`` is the file, or the name of a shipped config.

    Returns:
        The config with ``launcher`` and ``work_dir`` set.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If the config does not name its host library, if parts of it are of another
            type than expected, if the work directory is a file, or if the launcher's variables
            are absent.
    """
    settings.set_local_rank(args.local_rank)
    _check_launcher(args.launcher)
    cfg = read_config(find_config(args.config))
    cfg.launcher = args.launcher
    warn_of_misspelled(cfg)
    merge_options(cfg, args.cfg_options)
    if not isinstance(cfg.get('default_scope'), str):
        raise InputError(
            f'{args.config}: default_scope={cfg.get("default_scope")!r}; expected '
            f'{" or ".join(_HOSTS)}'
        )
    near = nearest(cfg.default_scope, _HOSTS)
    # mmdet3d is another package, mmdett is none
    if near not in (None, cfg.default_scope) and not find_spec(cfg.default_scope):
        raise InputError(
            f'{args.config}: default_scope={cfg.default_scope!r}; did you mean {near}?'
        )
    cfg.launcher = args.launcher
    default_dir = cfg.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))
    cfg.work_dir = args.work_dir or default_dir
    if Path(cfg.work_dir).exists() and not Path(cfg.work_dir).is_dir():
        raise InputError(f'--work-dir {cfg.work_dir} is a file; expected a folder')
    check_shape(cfg)
    _set_dataloader_defaults(cfg)
    return cfg


def _check_launcher(launcher: str) -> None:
    """Check that the launcher has set its variables."""
    if absent := settings.absent(launcher):
        commands = dict(pytorch='torchrun', slurm='srun', mpi='mpirun')
        raise InputError(
            f'--launcher {launcher}: {" and ".join(absent)} are not set; start with '
            f'{commands[launcher]}, or use --launcher none for a single process'
        )


def _set_dataloader_defaults(cfg: Config) -> None:
    """Support loaders without workers; apply the defaults of mmpretrain's tools."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader is None:
            continue
        if cfg.default_scope == 'mmpretrain':
            loader.setdefault('collate_fn', dict(type='default_collate'))
            loader.setdefault('pin_memory', torch.cuda.is_available())
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)
        if not loader.get('num_workers'):
            loader.persistent_workers = False
            loader.pop('prefetch_factor', None)


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config.

    Args:
        cfg: Complete config.

    Returns:
        The quiet runner of that type, or the one of ``runner_type``.
    """
    kind = cfg.get('runner_type', 'Runner')
    return QUIET[kind].from_cfg(cfg) if kind in QUIET else RUNNERS.build(cfg)
