# SPDX-License-Identifier: Apache-2.0
"""Tools that visualize attention, keys, receptive fields and class activation."""

import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmfocal import FocalTransformer
from mmfocal.visualization.cam import activation_map
from tests.helpers.pictures import is_colored, is_drawn_on, two_panels

ROOT = Path(__file__).resolve().parents[2]
CLASSIFIER = ROOT / 'configs/quickstart/focal_nano_cls.py'
DETECTOR = ROOT / 'configs/quickstart/focal_nano_retinanet.py'
Run = Callable[..., str]


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """Run a tool in this process; what it printed, or the error that it exited with."""
    picture = np.full((56, 56, 3), 200, np.uint8)
    picture[10:30, 10:30] = 20
    cv2.imwrite(str(tmp_path / 'picture.png'), picture)
    monkeypatch.chdir(tmp_path)

    def run_tool(tool: str, *arguments: str | Path) -> str:
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / f'tools/visualize/{tool}.py'), run_name='__main__')
        except SystemExit as end:
            return str(end.code)
        return capsys.readouterr().out

    return run_tool


def blocks(language: str) -> list[str]:
    """Code of the page about focal attention."""
    page = (ROOT / 'docs/focal_attention.md').read_text()
    found = re.findall(rf'```{language}\n(.+?)```', page, re.DOTALL)
    assert found
    return found


def test_commands_of_the_page(workspace, monkeypatch, capsys):
    (workspace / 'configs').symlink_to(ROOT / 'configs')
    monkeypatch.chdir(workspace)
    for line in ''.join(blocks('shell')).splitlines():
        python, tool, *arguments = shlex.split(line)
        assert python == 'python'
        monkeypatch.setattr(sys, 'argv', [tool, *arguments])
        runpy.run_path(str(ROOT / tool), run_name='__main__')
        for written in re.findall(r'wrote (\S+?)(?::|$)', capsys.readouterr().out, re.MULTILINE):
            if 'cam.py' in tool:
                scene, explained = two_panels(written)
                assert is_drawn_on(explained, scene), line
            else:  # attention is drawn on a gray scene
                assert is_colored(written), line


def test_code_of_the_page():
    for block in blocks('python'):
        exec(block, {})


def pixels(path: str) -> np.ndarray:
    found = cv2.imread(path)
    assert found is not None, path
    return found


def test_attention(show):
    assert 'wrote a.png' in show(
        'attention', DETECTOR, 'none', 'picture.png', '--query', 10, 10, '--out', 'a.png'
    )
    printed = show(
        'attention', DETECTOR, 'none', 'picture.png', '--query', 50, 50, '--out', 'b.png'
    )
    assert 'fine: ' in printed and 'coarse level 0: ' in printed
    assert (pixels('a.png') != pixels('b.png')).any()
    assert 'stage=9: expected 0 to 3' in show(
        'attention', DETECTOR, 'none', 'picture.png', '--stage', 9
    )
    assert 'nothing.png: no such image' in show('attention', DETECTOR, 'none', 'nothing.png')
    swin = ROOT / 'configs/quickstart/swin_nano_maskrcnn.py'
    assert "type='SwinTransformer': expected FocalTransformer" in show(
        'attention', swin, 'none', 'picture.png'
    )


def test_names_and_runs(show, tmp_path):
    name, run = 'quickstart/focal_nano_cls', tmp_path / 'run'
    run.mkdir()
    cfg = Config.fromfile(CLASSIFIER)
    cfg.dump(run / 'focal_nano_cls.py')
    init_default_scope('mmpretrain')
    torch.manual_seed(1)  # weights that none of the other models has
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), run / 'iter_1.pth')
    drawn = {}
    for out, tool, *arguments in (
        ('run', 'attention', run),
        ('none', 'attention', name, 'none'),
        ('cam_run', 'cam', run),
        ('cam_file', 'cam', name, run / 'iter_1.pth'),
    ):
        options = ('picture.png', '--size', 56, 56, '--out', f'{out}.png')
        assert f'wrote {out}.png' in show(tool, *arguments, *options)
        drawn[out] = pixels(f'{out}.png')
    assert (drawn['run'] != drawn['none']).any()
    assert (drawn['cam_run'] == drawn['cam_file']).all()
    for tool in ('attention', 'cam'):
        assert 'needs a checkpoint' in show(tool, name, 'picture.png')
        assert 'got a b picture.png' in show(tool, name, 'a', 'b', 'picture.png')
        assert 'none.pth does not exist' in show(tool, run, 'none.pth', 'picture.png')
    assert 'wrote' in show('receptive_field', run, '--out', 'field')
    assert "mmfocal has no config 'absent'" in show('receptive_field', 'absent')


def test_receptive_field_and_keys(show):
    printed = show(
        'receptive_field',
        'quickstart/focal_nano_cls',
        '--effective-stage',
        3,
        '--size',
        56,
        '--out',
        'field',
    )
    assert '218' in printed and '196' in printed
    for stage in range(4):
        assert re.search(rf'│ {stage} +│', printed)
    assert is_colored('field/receptive_field.png')
    assert np.unique(pixels('field/effective_field_stage3.png')).size > 20
    assert '--effective-stage must be one of (3,)' in show(
        'receptive_field', CLASSIFIER, '--effective-stage', 1
    )
    show('keys', '--out', 'seven.png')
    show('keys', '--focal-window', 3, '--out', 'three.png')
    assert (pixels('seven.png') != pixels('three.png')).any()
    assert 'focal_window must be odd' in show('keys', '--focal-window', 4)


def test_existing_pictures_are_kept(show):
    Path('mine.png').write_text('mine')
    for tool, arguments in dict(
        attention=(DETECTOR, 'none', 'picture.png'),
        cam=(CLASSIFIER, 'none', 'picture.png'),
        keys=(),
    ).items():
        said = show(tool, *arguments, '--out', 'mine.png')
        assert said == 'error: mine.png exists; --overwrite replaces it'
        if arguments:
            said = show(tool, *arguments, '--out', './picture.png', '--overwrite')
            assert 'picture.png is the input picture.png' in said
    assert Path('mine.png').read_text() == 'mine'
    assert 'wrote mine.png' in show('keys', '--out', 'mine.png', '--overwrite')
    Path('receptive_field.png').touch()
    said = show('receptive_field', CLASSIFIER)
    assert 'receptive_field.png exists and is replaced' in said


def test_cam_of_a_classifier_and_a_detector(show):
    assert 'gradcam, class 4' in show(
        'cam', CLASSIFIER, 'none', 'picture.png', '--target', 4, '--out', 'cls.png'
    )
    assert 'eigencam' in show(
        'cam', DETECTOR, 'none', 'picture.png', '--method', 'eigencam', '--out', 'det.png'
    )
    assert (pixels('cls.png') != pixels('det.png')).any()
    assert 'detectors support --method eigencam only' in show(
        'cam', DETECTOR, 'none', 'picture.png'
    )
    assert 'target=10: expected 0 to 9' in show(
        'cam', CLASSIFIER, 'none', 'picture.png', '--target', 10
    )


def test_cam_lies_where_the_object_is():
    """With a backbone that keeps brightness, the map is high at the bright patch, not a stripe."""
    arch = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    model = FocalTransformer(arch, out_indices=(0,), drop_path_rate=0.0)
    block = model.layers[0].blocks[0]
    with torch.no_grad():
        for layer in (block.attn.proj, block.mlp.fc2):  # leave the residuals alone
            layer.weight.zero_()
            layer.bias.zero_()
        model.patch_embed.proj.weight.fill_(0).index_fill_(0, torch.tensor(0), 1 / 48)
        model.patch_embed.proj.bias.zero_()
        model.patch_embed.norm = nn.Identity()
        model.norm0 = nn.Identity()
    image = torch.zeros(3, 56, 56)
    image[:, 32:48, 8:20] = 1.0
    values, target = activation_map(model, model.norm0, image, 'gradcam', target=0)
    assert target == 0
    rows, columns = np.nonzero(values > 0.5)
    assert rows.min() >= 28 and rows.max() <= 51 and columns.min() >= 4 and columns.max() <= 23
