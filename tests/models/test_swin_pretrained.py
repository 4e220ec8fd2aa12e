# SPDX-License-Identifier: Apache-2.0
"""A Focal Transformer starts from Swin files of every family, and computes what they computed."""

import hashlib
import io
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmfocal import FocalTransformer
from mmfocal.engine import read_config
from mmfocal.models.pretrained import read_checkpoint
from mmfocal.models.swin import merge_to_conv, swin_to_focal

timm_swin = pytest.importorskip('timm.models.swin_transformer')
safetensors = pytest.importorskip('safetensors.torch')
ARCH = dict(embed_dims=8, depths=(1, 2, 2, 1), num_heads=(1, 1, 2, 2))
DENSE = dict(focal_windows=(15, 13, 9, 7), expand_sizes=(3, 3, 3, 3))  # as the dense configs
OWN_WINDOW_ONLY = dict(
    pool_method='none', expand_sizes=(0, 0, 0, 0), use_shift=True, drop_path_rate=0.0
)


def timm_model(size: int = 224) -> nn.Module:
    """Return a Swin of ``ARCH`` with random parameters, which cannot agree by chance."""
    model = timm_swin.SwinTransformer(
        img_size=size, embed_dim=8, depths=(1, 2, 2, 1), num_heads=(1, 1, 2, 2), num_classes=5
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2).add_(0.1)
    return model.eval()


def original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the original code saves it: downsampling at the end of a stage, index buffers, head."""
    moved = {
        re.sub(
            r'layers\.(\d)\.downsample', lambda m: f'layers.{int(m[1]) - 1}.downsample', key
        ).replace('head.fc.', 'head.'): value
        for key, value in state.items()
    }
    moved['layers.0.blocks.0.attn.relative_position_index'] = torch.zeros(49, 49)
    moved['layers.1.blocks.1.attn_mask'] = torch.zeros(4, 49, 49)
    return moved


def openmmlab_names(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """As mmdet's and mmseg's converters of the original files write it."""
    from mmdet.models.backbones.swin import swin_converter

    converted = swin_converter(original_names(state))
    return {key.replace('backbone.', prefix): value for key, value in converted.items()}


FAMILIES = {
    'timm': lambda state: state,
    'original': lambda state: {'model': original_names(state)},
    'mmpretrain': lambda state: {
        'state_dict': {**openmmlab_names(state, 'backbone.'), 'head.fc.weight': torch.ones(1)},
    },
    'mmseg': lambda state: {'state_dict': openmmlab_names(state, 'module.backbone.')},
}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    def save_file(content: object, name: str = 'swin.pth') -> str:
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return save_file


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Output of MMEngine's logger."""
    handler = logging.StreamHandler(io.StringIO())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield handler.stream
    logger.removeHandler(handler)


def summary(log: io.StringIO) -> str:
    (line,) = [line for line in log.getvalue().splitlines() if ': loaded ' in line]
    return line


def load(checkpoint: str, kind: str = 'SwinPretrained', **cfg) -> FocalTransformer:
    init_cfg = dict(type=kind, checkpoint=checkpoint)
    model = FocalTransformer(**{'arch': ARCH, **cfg}, init_cfg=init_cfg)
    model.init_weights()
    return model.eval()


@pytest.mark.parametrize('family', FAMILIES)
def test_every_family_gives_the_same(save, log, family):
    state = timm_model().state_dict()
    model = load(save(FAMILIES[family](state)), out_indices=(3,)).state_dict()
    for key in ('layers.1.blocks.1.attn.qkv.weight', 'layers.3.blocks.0.mlp.fc2.bias'):
        assert torch.equal(model[key], state[key])
    assert torch.equal(model['patch_embed.proj.weight'], state['patch_embed.proj.weight'])
    for stage in range(3):
        names = (f'layers.{stage + 1}.downsample.{n}' for n in ('norm.weight', 'norm.bias'))
        reduction = state[f'layers.{stage + 1}.downsample.reduction.weight']
        weight, bias = merge_to_conv(reduction, *(state[n] for n in names), is_unfolded=False)
        proj = f'layers.{stage}.downsample.proj'
        assert torch.allclose(model[f'{proj}.weight'], weight, atol=1e-6)
        assert torch.allclose(model[f'{proj}.bias'], bias, atol=1e-6)
    assert torch.equal(model['norm3.weight'], state['norm.weight'])
    line = summary(log)
    # 4 of the stem, 13 of each of 6 blocks, 6 of downsampling, 2 of the last norm
    assert f'loaded {4 + 13 * 6 + 6 + 2}, resized 0, fresh ' in line
    assert 'layers.[012].downsample.norm.weight' in line


def test_own_windows_compute_what_swin_computes(save):
    """Without coarse levels and neighbors a Focal stage is a Swin stage, shift included."""
    swin = timm_model()
    model = load(save(swin.state_dict()), out_indices=(0, 1), **OWN_WINDOW_ONLY)
    x = torch.randn(1, 3, 224, 224)
    tokens = swin.layers[0](swin.patch_embed(x))
    ours = model.layers[0](model.patch_embed(x))
    down = model.layers[0].downsample(ours.permute(0, 3, 1, 2))
    assert torch.allclose(ours, tokens, atol=1e-4)
    stage = swin.layers[1].blocks(down)
    assert torch.allclose(model.layers[1](down), stage, atol=1e-4)


def test_downsampling_is_patch_merging_up_to_scale():
    """The norm that follows Focal's convolution undoes the factor that Swin's norm divides by."""
    merge = timm_swin.PatchMerging(8).eval()
    with torch.no_grad():
        merge.norm.weight.normal_()
        merge.norm.bias.zero_()
    weight, bias = merge_to_conv(
        merge.reduction.weight, merge.norm.weight, merge.norm.bias, is_unfolded=False
    )
    x = torch.randn(2, 6, 8, 8)
    ours = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride=2).permute(0, 2, 3, 1)
    expected = F.layer_norm(merge(x), (16,))
    assert torch.allclose(F.layer_norm(ours, (16,)), expected, atol=1e-4)
    other = merge_to_conv(
        merge.reduction.weight, merge.norm.weight, merge.norm.bias, is_unfolded=True
    )
    assert not torch.allclose(weight, other[0], atol=0.1)


def test_focal_tiny_takes_what_it_shares_with_swin_tiny(save, log):
    """168 tensors have Swin's shapes, 91.3 % of the parameters; downsampling comes on top."""
    from mmdet.models import SwinTransformer

    state = {f'backbone.{k}': v for k, v in SwinTransformer().state_dict().items()}
    model = load(save({'state_dict': state}), arch='tiny', **DENSE)
    line = summary(log)
    found = re.search(r'loaded (\d+), resized 0, fresh (\d+)', line)
    assert (int(found[1]), int(found[2])) == (168 + 6, 228 - 168 - 6)
    converted = swin_to_focal(state, 'file')
    shared = sum(
        value.numel()
        for key, value in model.state_dict().items()
        if key in converted and '.downsample.' not in key
    )
    assert round(100 * shared / sum(p.numel() for p in model.parameters()), 1) == 91.3


def test_window_of_the_file_is_resized_and_conv_embedding_starts_fresh(save, log):
    swin = timm_swin.SwinTransformer(
        img_size=128, window_size=4, embed_dim=8, depths=(1, 2, 2, 1), num_heads=(1, 1, 2, 2)
    )
    load(save(swin.state_dict()), use_conv_embed=True, use_pre_norm=True, layer_scale_init=1e-4)
    line = summary(log)
    assert 'attn.relative_position_bias_table (49, 1) -> (169, 1)' in line
    fresh = line.split(' fresh ')[1]
    assert 'patch_embed.proj.weight' in fresh and 'blocks.*.gamma_1' in fresh
    assert 'layers.[012].downsample.proj.weight' in fresh


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: {'layer1.weight': torch.ones(2)}, 'expected one Swin .* found 0'),
        (lambda s: {**s, **{f'teacher.{k}': v for k, v in s.items()}}, 'found 2'),
        (lambda s: {**s, 'layers.0.blocks.0.attn.logit_scale': torch.ones(1)}, 'Swin V2'),
        (
            lambda s: {k: v for k, v in s.items() if k != 'layers.2.blocks.1.mlp.fc1.weight'},
            'layers.2.blocks.1.mlp.fc1.weight',
        ),
        (
            lambda s: {k: v for k, v in s.items() if k != 'layers.1.downsample.norm.bias'},
            "incomplete: it lacks 'layers.1.downsample.norm.bias'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(save, change, message):
    path = save(change(timm_model().state_dict()))
    model = FocalTransformer(ARCH, init_cfg=dict(type='SwinPretrained', checkpoint=path))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_two_initializers_point_to_each_other(save):
    focal = save(FocalTransformer(ARCH).state_dict(), 'focal.pth')
    with pytest.raises(ValueError, match='holds a Focal Transformer; use FocalPretrained'):
        load(focal)
    with pytest.raises(ValueError, match=r'SwinPretrained \(or swin:'):
        load(save(timm_model().state_dict()), kind='FocalPretrained')
    with pytest.raises(ValueError, match='the file has 8 embed_dims, the model 16'):
        load(save(timm_model().state_dict()), arch={**ARCH, 'embed_dims': 16})


def test_from_the_command_line_of_a_shipped_config(save, monkeypatch, repo_root):
    monkeypatch.setenv('FOCAL_T_CKPT', f'swin:{save(timm_model().state_dict())}')
    cfg = read_config(repo_root / 'configs/detection/focal_t_maskrcnn_1x.py').model.backbone
    model = load(cfg.init_cfg.checkpoint, kind=cfg.init_cfg.type)
    weight = timm_model().state_dict()['layers.0.blocks.0.attn.qkv.weight']
    assert model.state_dict()['layers.0.blocks.0.attn.qkv.weight'].shape == weight.shape


# ---- safetensors and addresses -----------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address that serves it; downloads go to another folder."""
    folder = tmp_path / 'served'
    folder.mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield folder, f'http://127.0.0.1:{http.server_port}'
        http.shutdown()


def test_safetensors(tmp_path):
    state = {k: v.contiguous() for k, v in timm_model().state_dict().items()}
    safetensors.save_file(state, tmp_path / 'swin.safetensors')
    found = read_checkpoint(str(tmp_path / 'swin.safetensors'))
    assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)
    load(str(tmp_path / 'swin.safetensors'))
    focal = FocalTransformer(ARCH).state_dict()
    safetensors.save_file(focal, tmp_path / 'focal.safetensors')
    loaded = load(str(tmp_path / 'focal.safetensors'), kind='FocalPretrained').state_dict()
    assert all(torch.equal(loaded[key], focal[key]) for key in focal)
    (tmp_path / 'cut.safetensors').write_bytes((tmp_path / 'swin.safetensors').read_bytes()[:99])
    with pytest.raises(ValueError, match=r'cut.safetensors is damaged or not a safetensors file'):
        read_checkpoint(str(tmp_path / 'cut.safetensors'))


def test_addresses_are_downloaded_once(server, monkeypatch):
    folder, address = server
    monkeypatch.setenv('HF_ENDPOINT', address)
    weights = folder / 'timm/swin/resolve/main/model.safetensors'
    weights.parent.mkdir(parents=True)
    safetensors.save_file({'a': torch.ones(2)}, weights)
    torch.save({'b': torch.zeros(3)}, folder / 'model.pth')
    for _ in range(2):
        assert torch.equal(read_checkpoint('hf-hub:timm/swin')['a'], torch.ones(2))
        assert torch.equal(read_checkpoint(f'{address}/model.pth#unverified')['b'], torch.zeros(3))
        weights.unlink(missing_ok=True)  # the second time it comes from the disk
        (folder / 'model.pth').unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r'timm/none/resolve/v2/.* cannot be downloaded'):
        read_checkpoint('hf-hub:timm/none@v2')
    with pytest.raises(ValueError, match='expected hf-hub:OWNER/NAME'):
        read_checkpoint('hf-hub:swin')


def test_addresses_that_differ_in_the_query_are_other_files(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    addresses = []
    for number in range(2):
        path = tmp_path / f'get.pth?id={number}'
        torch.save({'a': torch.tensor(number)}, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        addresses += [f'file://{path}{end}' for end in (f'#sha256={digest}', '#unverified')]
    assert [read_checkpoint(each)['a'].item() for each in addresses] == [0, 0, 1, 1]


def test_addresses_need_a_checksum(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    torch.save(FocalTransformer(ARCH).state_dict(), tmp_path / 'model.pth')
    address = (tmp_path / 'model.pth').as_uri()
    for read in (
        read_checkpoint,
        lambda address: load(address, kind='FocalPretrained'),
        lambda address: load(address, kind='SwinPretrained'),
    ):
        with pytest.raises(ValueError, match=r'model\.pth: downloads need a checksum; .*#sha256='):
            read(address)
    for short in ('', 'a', 'model', '0' * 65):
        with pytest.raises(ValueError, match='expected 8 to 64 hexadecimal digits'):
            read_checkpoint(f'{address}#sha256={short}')
    assert not list((tmp_path / 'torch').rglob('*.pth'))
    load(f'{address}#unverified', kind='FocalPretrained')


@pytest.mark.parametrize(
    'name', ['model.pth#sha256={0}', 'model-{0:.8}.pth', 'hf-hub:a/b#sha256={0}']
)
def test_checksums_of_addresses_are_verified(server, monkeypatch, name):
    folder, address = server
    monkeypatch.setenv('HF_ENDPOINT', address)
    is_hub = name.startswith('hf-hub:')
    path = folder / ('a/b/resolve/main/model.safetensors' if is_hub else 'model.pth')
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.save_file({'a': torch.ones(2)}, path) if is_hub else torch.save({'a': 1}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    prefix = '' if is_hub else f'{address}/'
    wrong = digest[::-1]
    for each in (digest, wrong):  # the name on the server follows the checksum
        shutil.copy(path, folder / f'model-{each[:8]}.pth')
    with pytest.raises(ValueError, match='is not the expected file'):
        read_checkpoint(prefix + name.format(wrong))
    assert 'a' in read_checkpoint(prefix + name.format(digest))
    for path in (folder.parent / 'torch').rglob('*_mo*'):  # the file on the disk is verified too
        path.write_bytes(b'damaged')
    with pytest.raises(ValueError, match=r'has the SHA-256 .* remove the file'):
        read_checkpoint(prefix + name.format(digest))
