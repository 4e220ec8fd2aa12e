# SPDX-License-Identifier: Apache-2.0
"""Checks that loop, sampler, checkpoints and schedulers of a training count in the same unit."""

from typing import Any

from mmengine.config import Config
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from ..findings import Findings
from ..machine import kind_of
from ..options import registered

_ENDLESS = ('InfiniteSampler', 'MultiSourceSampler', 'GroupMultiSourceSampler')  # MMEngine, mmdet
_FEW = 10  # a smaller interval counts epochs rather than iterations


def check_schedule(cfg: Config, findings: Findings) -> None:
    """Check that nothing waits for the end of an epoch that never comes.

    A loop by iterations ends one epoch, its last iteration. A loop by epochs with an endless
    sampler ends none. Loops of other classes are not checked.

    Args:
        cfg: Complete config; not checked without ``train_cfg``.
        findings: Collects the errors.
    """
    settings = cfg.get('train_cfg')
    if not settings:
        return
    loop = _loop_class(settings, cfg.get('default_scope'))
    if issubclass(loop, EpochBasedTrainLoop):
        _check_sampler(cfg, findings)
    elif issubclass(loop, IterBasedTrainLoop):
        _check_checkpoints(cfg, findings)
    _check_schedulers(cfg, issubclass(loop, IterBasedTrainLoop), findings)


def _loop_class(settings: dict, scope: str | None) -> type:
    if 'type' not in settings:
        loops = {True: EpochBasedTrainLoop, False: IterBasedTrainLoop}
        return loops.get(settings.get('by_epoch'), object)
    kind = settings['type']
    return (registered(LOOPS, kind, scope) if isinstance(kind, str) else kind) or object


def _check_sampler(cfg: Config, findings: Findings) -> None:
    loader = cfg.get('train_dataloader') or {}
    kind = kind_of(loader.get('sampler') or {})
    if kind in _ENDLESS:
        instead = {'train_dataloader.sampler.type': 'DefaultSampler'}
        findings.error(
            f'train_dataloader.sampler.type={kind!r} never ends, so the first epoch of '
            f'train_cfg={_short(cfg.train_cfg)} does not either; expected a sampler that ends, '
            "such as DefaultSampler, or a loop by iterations: train_cfg=dict(type='Iter"
            "BasedTrainLoop', max_iters=...)",
            instead if kind == 'InfiniteSampler' else None,
        )


def _check_checkpoints(cfg: Config, findings: Findings) -> None:
    """Check the hooks that save; the default hook of MMEngine saves by epoch."""
    default = (cfg.get('default_hooks') or {}).get('checkpoint', dict(type='CheckpointHook'))
    hooks = {'default_hooks.checkpoint': default}
    for index, hook in enumerate(cfg.get('custom_hooks') or ()):
        hooks[f'custom_hooks.{index}'] = hook
    for key, hook in hooks.items():
        if not isinstance(hook, dict) or kind_of(hook) != 'CheckpointHook':
            continue
        interval = hook.get('interval', 1 if key.startswith('default') else -1)
        if hook.get('by_epoch', True) and interval > 0:
            every = interval if interval >= _FEW else cfg.train_cfg.get('val_interval', 1000)
            findings.error(
                f'{key}.by_epoch={hook.get("by_epoch", "True (the default)")} with a loop by '
                'iterations writes no checkpoint before the end of the training; expected '
                f'by_epoch=False and an interval in iterations instead of {interval}',
                {f'{key}.type': 'CheckpointHook', f'{key}.by_epoch': False}
                | {f'{key}.interval': every},
            )


def _check_schedulers(cfg: Config, by_iteration: bool, findings: Findings) -> None:
    for key, scheduler in _schedulers('param_scheduler', cfg.get('param_scheduler')):
        by_epoch, converts = scheduler.get('by_epoch', True), 'convert_to_iter_based'
        if not by_epoch and scheduler.get(converts):
            findings.error(
                f'{key}.{converts}=True converts epochs, but by_epoch=False; expected one of them'
            )
        adapts = scheduler.get(converts) or 'Plateau' in kind_of(scheduler)  # steps at validations
        if by_iteration and by_epoch and not adapts:
            findings.error(
                f'{key}.by_epoch={scheduler.get("by_epoch", "True (the default)")} '
                f'({kind_of(scheduler)}) with a loop by iterations never takes a step, so '
                'its values stay those of the start; expected by_epoch=False, and begin, end, '
                'T_max and milestones in iterations',
                {f'{key}.by_epoch': False},
            )


def _schedulers(key: str, node: Any) -> list[tuple[str, dict]]:
    """List the schedulers of one, several, or named optimizers."""
    if isinstance(node, dict) and 'type' in node:
        return [(key, node)]
    parts = node.items() if isinstance(node, dict) else enumerate(node or ())
    return [found for name, part in parts for found in _schedulers(f'{key}.{name}', part)]


def _short(settings: dict) -> str:
    return f'dict({", ".join(f"{name}={value!r}" for name, value in settings.items())})'
