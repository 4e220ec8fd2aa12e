# SPDX-License-Identifier: Apache-2.0
"""Reference tensors of the released classification code, and the models they belong to.

Each file holds a small model's configuration (in the released code's names), parameters, an input
and the outputs: features of every stage, logits, and gradients.
"""

from pathlib import Path

import torch
from torch import Tensor

from mmfocal import FocalTransformer

GOLDEN_DIR = Path(__file__).parents[1] / 'data' / 'golden'
GOLDEN_NAMES = sorted(path.stem for path in GOLDEN_DIR.glob('*.pt'))


def load_golden(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def golden_backbone_cfg(config: dict) -> dict:
    """Constructor arguments of ``FocalTransformer`` for the released code's.

    The released code reduces windows and expand sizes that exceed a map; this function does so in
    the arguments.
    """
    size = config['img_size']
    height, width = (size, size) if isinstance(size, int) else size
    smaller = [min(height, width) // 4 // 2**stage for stage in range(4)]
    w = config['window_size']
    return dict(
        arch=dict(
            embed_dims=config['embed_dim'], depths=config['depths'], num_heads=config['num_heads']
        ),
        window_size=[min(w, side) for side in smaller],
        focal_levels=config['focal_levels'],
        focal_windows=config['focal_windows'],
        expand_sizes=[
            e if side > w else 0 for side, e in zip(smaller, config['expand_sizes'], strict=True)
        ],
        expand_layer=config.get('expand_layer', 'all'),
        pool_method=config['focal_pool'],
        use_conv_embed=config.get('use_conv_embed', False),
        use_shift=config.get('use_shift', False),
        use_pre_norm=config.get('use_pre_norm', False),
        layer_scale_init=1e-4 if config.get('use_layerscale') else None,
        abs_pos_embed_size=(height // 4, width // 4) if config.get('ape') else None,
        drop_path_rate=config['drop_path_rate'],
    )


def golden_backbone(golden: dict, **cfg) -> tuple[FocalTransformer, dict[str, Tensor]]:
    """A backbone with the golden parameters, and those of the classifier's head."""
    model = FocalTransformer(**golden_backbone_cfg(golden['config']), **cfg).eval()
    state = {
        f'norm3.{key[5:]}' if key.startswith('norm.') else key: value
        for key, value in golden['state_dict'].items()
    }
    head = {key: state.pop(key) for key in ('head.weight', 'head.bias')}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.startswith('norm') for key in missing), missing
    return model, head
