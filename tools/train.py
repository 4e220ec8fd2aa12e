# SPDX-License-Identifier: Apache-2.0
"""Train a detector, segmentor or classifier; the config's ``default_scope`` says which."""

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
from mmfocal.engine.files import protect_files
from mmfocal.engine.nonfinite import StopAtNonFinite
from mmfocal.engine.randomness import RandomNumbers
from mmfocal.engine.resume import ResumeSchedule, ValidateFinished, resume
from mmfocal.errors import InputError, in_one_line

HOOKS = (RandomNumbers, StopAtNonFinite, SaveOnSignal, ResumeSchedule, ValidateFinished)


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, or name of a shipped config')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint, or from the latest in the work directory',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by actual batch size / auto_scale_lr.base_batch_size',
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
    if args.resume:
        if args.resume != 'auto' and not Path(args.resume).is_dir():
            check_checkpoint(args.resume)
        resume(cfg, args.resume, args.allow_pickle)
    elif cfg.get('load_from'):
        check_checkpoint(cfg.load_from)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the training of the command line."""
    args = make_parser().parse_args(argv)
    cfg = load_config(args)
    apply_options(cfg, args)
    adapt_to_machine(cfg)
    check_run(cfg, ('train', 'val'))
    protect_files(args.allow_pickle)
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
