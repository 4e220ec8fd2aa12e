# SPDX-License-Identifier: Apache-2.0
"""Draw class activation maps over an image, with grad-cam.

    python tools/visualize/cam.py RUN IMAGE --target 3 --method gradcam
    python tools/visualize/cam.py CONFIG CHECKPOINT IMAGE

Classifiers and segmentors have one map per class. Detectors have no scores per class of the whole
image, so use --method eigencam, which shows the activations of the backbone without a class.
"""

import argparse
import sys
from pathlib import Path

from matplotlib.figure import Figure

from mmfocal.existing_outputs import add_overwrite_argument, check_outputs
from mmfocal.visualization.cam import CLASS_FREE, METHODS, activation_map
from mmfocal.visualization.models import (
    checkpoint_and_image,
    load_backbone,
    load_model,
    normalize,
    read_image,
    read_model_config,
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='run folder, config file or config name')
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='[CHECKPOINT] IMAGE',
        help='checkpoint of the whole model or "none" for random weights (only after a config), '
        'then the image',
    )
    parser.add_argument(
        '--method', choices=METHODS, default='gradcam', help='method (default: gradcam)'
    )
    parser.add_argument(
        '--target', type=int, help='class index (default: the class with the best score)'
    )
    parser.add_argument(
        '--stage', type=int, help='stage whose output is drawn, from 0 (default: the last)'
    )
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('W', 'H'), help='resize the image to this size first'
    )
    parser.add_argument(
        '--out', type=Path, help='image to write (default: IMAGE_cam.png in the current folder)'
    )
    add_overwrite_argument(parser)
    return parser.parse_args()


def explain(args: argparse.Namespace) -> str:
    """Draw the image and return its title."""
    checkpoint, path = checkpoint_and_image(args.inputs)
    args.out = args.out or Path(f'{path.stem}_cam.png')
    check_outputs([args.out], args.overwrite, inputs=[path])
    cfg, checkpoint = read_model_config(args.config, checkpoint)
    image = read_image(path, args.size)
    if cfg.default_scope == 'mmdet' and args.method not in CLASS_FREE:
        raise ValueError('detectors support --method eigencam only')
    if cfg.default_scope == 'mmdet':
        model = backbone = load_backbone(cfg, checkpoint)
    else:
        model = load_model(cfg, checkpoint)
        backbone = model.backbone
    stage = backbone.out_indices[-1] if args.stage is None else args.stage
    if stage not in backbone.out_indices:
        raise ValueError(f'--stage {stage}: expected one of {backbone.out_indices}')
    layer = getattr(backbone, f'norm{stage}')
    values, target = activation_map(model, layer, normalize(cfg, image), args.method, args.target)
    title = args.method if args.method in CLASS_FREE else f'{args.method}, class {target}'
    figure = Figure((8.4, 4.4 * image.shape[0] / image.shape[1]), layout='constrained')
    for axes in figure.subplots(1, 2):
        axes.imshow(image)
        axes.set(xticks=[], yticks=[])
    shown = axes.imshow(values, cmap='jet', alpha=0.5, vmin=0, vmax=1)
    axes.set_title(f'{title}, stage {stage}')
    figure.colorbar(shown, ax=axes, shrink=0.8)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)
    return title


def main() -> None:
    """Draw one image."""
    args = parse_args()
    try:
        title = explain(args)
    except (OSError, ImportError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(f'wrote {args.out}: {title}')


if __name__ == '__main__':
    main()
