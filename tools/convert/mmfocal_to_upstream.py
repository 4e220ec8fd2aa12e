# SPDX-License-Identifier: Apache-2.0
"""Convert a classifier of this project to a file of the released code.

The inverse of upstream_to_mmfocal.py: no value changes. The released code fills its index buffers
itself.

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
        'src', help="checkpoint of mmpretrain's ImageClassifier around a FocalTransformer"
    )
    parser.add_argument('dst', help='file to write, .pth or .safetensors')
    parser.add_argument(
        '--allow-pickle',
        action='store_true',
        help='unpickle objects of any class, which can run any code: trusted files only',
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
    print(f'wrote {args.dst}: {len(converted)} tensors, without {dropped} that the code computes')


if __name__ == '__main__':
    main()
