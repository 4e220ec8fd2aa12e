# SPDX-License-Identifier: Apache-2.0
"""Evaluate a detector, segmentor or classifier; the config's ``default_scope`` says which."""

from argparse import ArgumentParser
from collections.abc import Sequence

from mmfocal.engine import (
    adapt_to_machine,
    add_common_arguments,
    build_runner,
    check_checkpoint,
    check_inputs,
    check_widths,
    load_config,
)
from mmfocal.engine.evaluate import (
    draw_predictions,
    dump_metric,
    use_tta,
    write_submission,
)
from mmfocal.engine.load import LoadWholeModel


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, or name of a shipped config')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out', metavar='FILE.pkl', help='write the predictions to this pickle file'
    )
    parser.add_argument(
        '--format-only',
        metavar='TARGET',
        help='write files for a test server instead of a score, annotations are not needed: '
        'TARGET.bbox.json and TARGET.segm.json (COCO) or a folder of label maps (ADE20K)',
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='write pictures of the predictions into this folder')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds per window')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument(
        '--allow-pickle',
        action='store_true',
        help='unpickle any object in the checkpoint, which can run any code: trusted files only',
    )
    add_common_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Test as the command line says."""
    args = make_parser().parse_args(argv)
    dump = []
    cfg = load_config(args)
    check_checkpoint(args.checkpoint)
    check_widths(cfg)
    cfg.update(load_from=None, resume=False)  # LoadWholeModel takes their place
    if args.out:
        dump = [dump_metric(cfg.default_scope, args.out)]
    if args.show or args.show_dir:
        draw_predictions(cfg, args.show, args.show_dir, args.wait_time)
    if args.tta:
        use_tta(cfg)
    if args.format_only:
        write_submission(cfg, args.format_only)
    if args.amp:
        cfg.test_cfg.fp16 = True
    adapt_to_machine(cfg)
    check_inputs(cfg, ('test',))
    runner = build_runner(cfg)
    runner.register_hook(LoadWholeModel(args.checkpoint, args.allow_pickle))
    runner.test_evaluator.metrics.extend(dump)
    runner.test()


if __name__ == '__main__':
    main()
