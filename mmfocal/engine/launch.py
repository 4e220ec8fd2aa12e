# SPDX-License-Identifier: Apache-2.0
"""Command line, config and runner for detection, segmentation and classification."""

import difflib
import inspect
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmfocal.errors import InputError
from mmfocal.zoo import find_config

from .machine import dicts_in, tell
from .quiet import QUIET

# keys that MMEngine's runner and the tools read
_RUNNER_KEYS = inspect.signature(Runner.__init__).parameters.keys() - {'self', 'cfg'}
_TOP_LEVEL = {
    *_RUNNER_KEYS,
    *('activation_checkpointing', 'compile', 'cudnn_benchmark', 'efficient_conv_bn_eval'),
    *('find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'strategy', 'sync_bn'),
    *('custom_imports', 'tta_model', 'tta_pipeline'),
}


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add the options that training and testing share.

    Args:
        parser: Gets ``--work-dir --amp --cfg-options --allow-pickle --launcher --local-rank``.
    """
    parser.add_argument('--work-dir', help='where logs and results go (./work_dirs/<config name>)')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='settings to override: key=value, lists as key="[a,b]" or key=a,b, tuples as '
        'key="(a,b)"; a list takes the place of a tuple as a tuple',
    )
    parser.add_argument(
        '--allow-pickle',
        action='store_true',
        help='unpickle any object in checkpoints, which can run any code: trusted files only',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch passes this option, torch.distributed.run sets the variable
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def read_config(path: str | Path) -> Config:
    """Read a config file, which may have bases of this package: ``_base_ = 'mmfocal::...'``.

    MMEngine looks up types of such a base, such as ``EncoderDecoder``, in the scope of the package
    that the base comes from. Configs of this package use the scopes of their host libraries, so
    the marker is removed and ``default_scope`` applies.

    Args:
        path: Config file.

    Returns:
        The config.
    """
    cfg = Config.fromfile(path)
    for node in dicts_in(dict(cfg)):
        if node.get('_scope_') == 'mmfocal':
            del node['_scope_']
    return cfg


def load_config(args: Namespace) -> Config:
    """Read the config of a command line and apply the options of ``add_common_arguments``.

    Args:
        args: Parsed options; ``config`` is the file, or the name of a shipped config.

    Returns:
        The config with ``launcher`` and ``work_dir`` set.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If the config does not name its host library.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(find_config(args.config))
    cfg.launcher = args.launcher
    warn_of_unknown_keys(cfg, args.cfg_options)
    cfg.merge_from_dict(_keep_tuples(cfg, args.cfg_options))
    if cfg.get('default_scope') is None:
        raise InputError(
            f"{args.config}: 'default_scope' is missing; expected 'mmdet', 'mmseg' or 'mmpretrain'"
        )
    cfg.launcher = args.launcher
    default_dir = cfg.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))
    cfg.work_dir = args.work_dir or default_dir
    _set_dataloader_defaults(cfg)
    return cfg


def _keep_tuples(cfg: Config, options: dict[str, Any]) -> dict[str, Any]:
    """Convert lists that replace tuples to tuples, as transforms require for ``scale=128,128``."""
    kept = {}
    for key, value in options.items():
        is_tuple = isinstance(value, list) and isinstance(_value_at(cfg, key), tuple)
        kept[key] = tuple(value) if is_tuple else value
    return kept


def _value_at(cfg: Config, key: str) -> Any:
    """Look up a dotted key; None if there is none."""
    node: Any = dict(cfg)
    for name in key.split('.'):
        if isinstance(node, dict) and name in node:
            node = node[name]
        elif isinstance(node, (list, tuple)) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        else:
            return None
    return node


def warn_of_unknown_keys(cfg: Config, options: dict[str, Any]) -> None:
    """Warn of options that nothing reads, with the nearest known key.

    Modules with a ``type`` reject unknown arguments themselves, so new keys are allowed there.

    Args:
        cfg: Config before the options are merged.
        options: Values by dotted key.
    """
    for name in cfg.keys() - _TOP_LEVEL:  # configs may have their own variables
        (nearest,) = difflib.get_close_matches(name, _RUNNER_KEYS, 1, cutoff=0.87) or [None]
        if nearest and nearest not in cfg:
            tell(cfg, f'WARNING: {name} in {cfg.filename} is not a known key; is {nearest} meant?')
    for key in options:
        node, path = dict(cfg), key.split('.')
        for depth, name in enumerate(path):
            if not isinstance(node, dict) or 'type' in node:
                break
            known = node.keys() | (_TOP_LEVEL if depth == 0 else set())
            if name not in known:
                near = difflib.get_close_matches(
                    name, sorted(known), 1, cutoff=0.8 if depth else 0.6
                )
                nearest = '.'.join([*path[:depth], *near])
                # nested modules may get keys that the config leaves at their defaults
                if near or not depth:
                    hint = f'the nearest is {nearest}' if near else 'nothing reads it'
                    tell(cfg, f'WARNING: --cfg-options {key}: there is no {name!r} here; {hint}')
                break
            node = node.get(name)


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
