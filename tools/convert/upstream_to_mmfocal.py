# SPDX-License-Identifier: Apache-2.0
"""Convert a released classification file to a checkpoint of this project.

The result is a checkpoint of a whole classifier, for tools/test.py and for init_cfg. No value
changes. Index and mask buffers are left out, because both implementations compute them.

    python tools/convert/upstream_to_mmfocal.py focal-tiny-is224-ws7.pth focal_t_in1k.pth
"""

import argparse
import sys

from mmfocal.existing_outputs import add_overwrite_argument, check_outputs
from mmfocal.models.checkpoint_files import read_checkpoint, tensors_of, write_checkpoint
from mmfocal.models.pretrained import convert_upstream


def main() -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', help='file of the released code')
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
        converted = convert_upstream(state)
        if converted is state:
            raise ValueError(f'{args.src} is not a released classifier (layers.*, norm.*, head.*)')
        write_checkpoint(dict(meta={}, state_dict=converted), args.dst)
    except (OSError, ImportError, ValueError) as error:
        sys.exit(f'error: {error}')
    dropped = len(state) - len(converted)
    print(f'wrote {args.dst}: {len(converted)} tensors; left out {dropped} derived buffers')


if __name__ == '__main__':
    main()
