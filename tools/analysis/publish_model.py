# SPDX-License-Identifier: Apache-2.0
"""Prepare a checkpoint for publication: keep weights and classes, add the hash to the name.

Optimizer, schedules and logs are left out. The hosts' tools of the same name fail on MMEngine's
checkpoints with PyTorch 2.6 and later.

    python tools/analysis/publish_model.py work_dirs/run/epoch_12.pth focal_t_maskrcnn.pth
    # -> focal_t_maskrcnn-1a2b3c4d.pth
"""

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

from mmfocal.existing_outputs import add_overwrite_argument, check_outputs
from mmfocal.models.checkpoint_files import read_checkpoint, tensors_of, write_checkpoint


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('in_file', help='checkpoint of a run')
    parser.add_argument(
        'out_file', type=Path, help='file to write; eight digits of its SHA-256 go into its name'
    )
    parser.add_argument(
        '--save-keys',
        nargs='+',
        default=['meta', 'state_dict'],
        help='keys of the checkpoint to keep (default: meta state_dict)',
    )
    parser.add_argument('--safetensors', action='store_true', help='write safetensors')
    parser.add_argument(
        '--allow-pickle',
        action='store_true',
        help='unpickle objects of any class, which can run any code; only for trusted files',
    )
    add_overwrite_argument(parser)
    return parser.parse_args()


def publish(args: argparse.Namespace) -> Path:
    """Write the file and return its name."""
    checkpoint = read_checkpoint(args.in_file, args.allow_pickle)
    missing = set(args.save_keys) - {'meta', 'state_dict'} - set(checkpoint)
    if missing:
        raise ValueError(f'{args.in_file} lacks {sorted(missing)}, found {sorted(checkpoint)}')
    content = {key: checkpoint[key] for key in args.save_keys if key in checkpoint}
    content['state_dict'] = tensors_of(checkpoint, args.in_file)
    suffix = '.safetensors' if args.safetensors else args.out_file.suffix or '.pth'
    target = args.out_file.with_suffix(suffix)
    target.parent.mkdir(parents=True, exist_ok=True)
    # in a folder of its own, where the draft replaces nothing
    with tempfile.TemporaryDirectory(prefix='.publish-', dir=target.parent) as folder:
        draft = Path(folder, target.name)
        write_checkpoint(content, draft)
        digest = hashlib.sha256(draft.read_bytes()).hexdigest()[:8]
        target = target.with_stem(f'{target.stem}-{digest}')
        check_outputs([target], args.overwrite, inputs=[args.in_file])
        return draft.replace(target)


def main() -> None:
    """Publish one file."""
    args = parse_args()
    try:
        path = publish(args)
    except (OSError, ImportError, ValueError) as error:
        sys.exit(f'error: {error}')
    size = path.stat().st_size / 2**20
    print(f'wrote {path}: {size:.1f} MiB, was {Path(args.in_file).stat().st_size / 2**20:.1f}')


if __name__ == '__main__':
    main()
