# SPDX-License-Identifier: Apache-2.0
"""Convert a classifier of this project to the format of the released code.

This is the inverse of upstream_to_mmfocal.py. No value changes. The released code computes its
index buffers itself.

    python tools/convert/mmfocal_to_upstream.py work_dirs/focal_t_in1k/epoch_300.pth focal-tiny.pth
"""

import argparse
import sys

from mmfocal.existing_outputs import add_overwrite_argument, check_outputs
from mmfocal.models.checkpoint_files import read_checkpoint, tensors_of, write_checkpoint
from mmfocal.models.pretrained import convert_to_upstream


def main() -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'src', help="checkpoint of mmpretrain's ImageClassifier with a FocalTransformer"
    )
    parser.add_argument('dst', help='file to write, .pth or .safetensors')
    parser.add_argument(
        '--allow-pickle',
        action='store_true',
        help='unpickle objects of any class, which can run any code; only for trusted files',
    )
    add_overwrite_argument(parser)
    args = parser.parse_args()
    try:
        check_outputs([args.dst], args.overwrite, inputs=[args.src])
        state = tensors_of(read_checkpoint(args.src, args.allow_pickle), args.src)
        converted = convert_to_upstream(state, args.src)
        write_checkpoint(dict(model=converted), args.dst)
    except (OSError, ImportError, ValueError) as error:
        sys.exit(f'error: {error}')
    dropped = len(state) - len(converted)
    print(f'wrote {args.dst}: {len(converted)} tensors; left out {dropped} derived buffers')


if __name__ == '__main__':
    main()
