# SPDX-License-Identifier: Apache-2.0
"""Train a detector, segmentor or classifier; the config's ``default_scope`` says which."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from mmengine.config import Config

from mmfocal.engine import (
    ValidateFinished,
    adapt_to_machine,
    add_common_arguments,
    build_runner,
    check_checkpoint,
    check_inputs,
    check_widths,
    describe_batch_size,
    latest_checkpoint,
    load_config,
)


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
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
    return parser.parse_args(argv)


def apply_options(cfg: Config, args: Namespace) -> None:
    """Apply the options that only training has, in place."""
    if args.amp:
        wrapper = cfg.optim_wrapper
        if wrapper.get('type', 'OptimWrapper') not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise ValueError(f'--amp cannot replace optim_wrapper.type={wrapper.type!r}')
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.load_from = latest_checkpoint(cfg.work_dir) if args.resume == 'auto' else args.resume
        # without a file MMEngine would look for one itself and take an incomplete one
        cfg.resume = cfg.load_from is not None
        if cfg.resume:
            check_checkpoint(cfg.load_from)


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    args = parse_args(argv)
    cfg = load_config(args)
    apply_options(cfg, args)
    adapt_to_machine(cfg)
    check_widths(cfg)
    check_inputs(cfg, ('train', 'val'))
    runner = build_runner(cfg)
    if line := describe_batch_size(cfg, runner.world_size):
        runner.logger.warning(line)
    runner.register_hook(ValidateFinished())
    runner.train()


if __name__ == '__main__':
    main()
