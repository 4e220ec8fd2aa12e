# SPDX-License-Identifier: Apache-2.0
"""Train a detector, segmentor or classifier; default_scope in the config selects the task."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from mmfocal.engine import (
    adapt_to_machine,
    add_common_arguments,
    build_runner,
    check_checkpoint,
    check_run,
    describe_batch_size,
    leave_process_group,
    load_config,
)
from mmfocal.engine.checkpoints import SaveOnSignal
from mmfocal.engine.config_shape import check_complete
from mmfocal.engine.evaluate import tell_written_by_metrics
from mmfocal.engine.files import protect_files
from mmfocal.engine.load import CheckParameters
from mmfocal.engine.nonfinite import StopAtNonFinite
from mmfocal.engine.outputs import SeparateLabelMaps
from mmfocal.engine.randomness import RandomNumbers
from mmfocal.engine.resume import (
    ResumeSchedule,
    ValidateFinished,
    check_work_dir,
    resume,
)
from mmfocal.engine.startup import LoadFirstSamples, explained
from mmfocal.errors import InputError, in_one_line

HOOKS = (
    *(RandomNumbers, StopAtNonFinite, SaveOnSignal),
    *(CheckParameters, ResumeSchedule, ValidateFinished, LoadFirstSamples, SeparateLabelMaps),
)


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, or name of a shipped config')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint; without a value, from the latest in the work directory',
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='start a new training in a work directory that has checkpoints, and replace them',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by total batch size / auto_scale_lr.base_batch_size',
    )
    add_common_arguments(parser)
    return parser


def apply_options(cfg: Config, args: Namespace) -> None:
    """Apply the options of training, in place."""
    if args.amp:
        wrapper = cfg.optim_wrapper
        if wrapper.get('type', 'OptimWrapper') not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise InputError(f'--amp cannot replace optim_wrapper.type={wrapper.type!r}')
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise InputError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
        cfg.auto_scale_lr.enable = True
    checkpoint = args.resume or _resume_of(cfg)
    if checkpoint:
        if checkpoint != 'auto' and not Path(checkpoint).is_dir():
            check_checkpoint(checkpoint)
        resume(cfg, checkpoint, args.allow_pickle)
    elif not args.overwrite:
        check_work_dir(cfg, args.allow_pickle)
    if cfg.get('load_from') and not cfg.get('resume'):
        check_checkpoint(cfg.load_from)


def _resume_of(cfg: Config) -> str | None:
    """Translate a config's ``resume``, which MMEngine searches for without looking into files."""
    if cfg.get('resume') is True:
        return cfg.get('load_from') or 'auto'
    return cfg.get('resume') or None  # FlexibleRunner's may be a path


def main(argv: Sequence[str] | None = None) -> None:
    """Run the training of the command line."""
    args = make_parser().parse_args(argv)
    cfg = load_config(args)
    for split in ('train', 'val'):
        check_complete(cfg, split)
    apply_options(cfg, args)
    adapt_to_machine(cfg)
    check_run(cfg, ('train', 'val'))
    tell_written_by_metrics(cfg, 'val')
    protect_files(args.allow_pickle)
    with explained(cfg):
        runner = build_runner(cfg)
        for hook in HOOKS:
            runner.register_hook(hook())
        if line := describe_batch_size(cfg, runner.world_size):
            runner.logger.warning(line)
        runner.train()
    del runner
    leave_process_group()


if __name__ == '__main__':
    with in_one_line():
        main()
