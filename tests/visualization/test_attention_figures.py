# SPDX-License-Identifier: Apache-2.0
"""Figures and the page about focal attention agree with the geometry."""

import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from mmfocal import FocalTransformer
from mmfocal.ops.focal_attention import FocalGeometry
from mmfocal.ops.focal_attention.bias import bias_tables
from mmfocal.visualization.attention_figures import (
    COARSE,
    COLORS,
    MASKED,
    NEIGHBOR,
    TWICE,
    WINDOW,
    coarse_cells,
    fine_kinds,
    save_attention,
    save_keys,
)
from mmfocal.visualization.attention_maps import AttentionMap
from mmfocal.visualization.receptive_field import effective_field, field_of, save_receptive_field
from tests.helpers.pictures import is_colored, looks_like

PAPER = FocalGeometry(7, 3, 7, 2)
PAGE = Path(__file__).resolve().parents[2] / 'docs/focal_attention.md'


def count(kinds: np.ndarray) -> dict[int, int]:
    return dict(zip(*(values.tolist() for values in np.unique(kinds, return_counts=True))))


def test_fine_keys_are_own_neighbors_and_doubled_ones():
    kinds = fine_kinds(PAPER, (56, 56), window=36)
    assert count(kinds) == {0: 56 * 56 - 169, WINDOW: 49, NEIGHBOR: 108, TWICE: 12}
    assert (kinds[25:38, 25:38] > 0).all()
    corner = fine_kinds(PAPER, (56, 56), window=0)
    assert (corner[-3:, -3:] == NEIGHBOR).all() and count(corner) == count(kinds)


def test_coarse_cells_are_masked_beyond_the_map():
    amid, border = coarse_cells(PAPER, (56, 56), window=36, level=0)
    assert count(amid)[COARSE] == 49 and MASKED not in count(amid) and border == 7
    corner, _ = coarse_cells(PAPER, (56, 56), window=0, level=0)
    assert (count(corner)[COARSE], count(corner)[MASKED]) == (16, 33)
    assert (corner[7:11, 7:11] == COARSE).all()
    second, border = coarse_cells(FocalGeometry(7, 3, 5, 3), (56, 56), 36, level=1)
    assert count(second)[COARSE] == 36 and border == 6


def has_color(path: Path, color: str) -> bool:
    pixels = matplotlib.image.imread(path)[..., :3]
    return bool((np.abs(pixels - np.array(to_rgb(color))) < 0.01).all(-1).sum() > 200)


def test_pictures_of_keys_show_every_kind(tmp_path):
    save_keys(PAPER, (8, 8), tmp_path / 'keys.png')
    assert all(has_color(tmp_path / 'keys.png', color) for color in COLORS)
    save_keys(FocalGeometry(7, 0, 1, 1), (2, 2), tmp_path / 'window.png')
    only_own = [has_color(tmp_path / 'window.png', COLORS[kind]) for kind in (WINDOW, NEIGHBOR)]
    picture = matplotlib.image.imread(tmp_path / 'window.png')
    assert only_own[0] and picture[: picture.shape[0] * 3 // 4].shape[1] < 400
    save_receptive_field([PAPER], tmp_path / 'field.png')
    assert has_color(tmp_path / 'field.png', 'C0') and has_color(tmp_path / 'field.png', 'C1')


def attention_picture(path: Path, corner: int | None) -> np.ndarray:
    """A gray image with a square of attention at the corner; None for no square."""
    values = np.full((8, 8), np.nan)
    if corner is not None:
        values[corner : corner + 4, corner : corner + 4] = 1 / 16
    attention = AttentionMap([values], [1.0], (slice(0, 4), slice(0, 4)), (1, 1), 4)
    save_attention(np.full((32, 32, 3), 128, np.uint8), attention, path)
    picture = matplotlib.image.imread(path)[..., :3]
    return picture[:, : picture.shape[1] * 3 // 4]  # without the color bar


def test_attention_is_laid_over_where_it_is(tmp_path):
    none, first, last = (attention_picture(tmp_path / 'a.png', c) for c in (None, 0, 4))
    middles = [np.argwhere((none != picture).any(-1)).mean(0) for picture in (first, last)]
    assert (middles[1] - middles[0] > 60).all()


@pytest.mark.parametrize(
    ('geometry', 'keys', 'side'),
    [
        (PAPER, (169, 49), 49),
        (FocalGeometry(7, 0, 1, 1), (49,), 7),
        (FocalGeometry(7, 5, 1, 2), (17 * 17 - 4 * 5 * 3, 1), 17),
        (FocalGeometry(7, 3, 15, 2), (169, 225), 105),
    ],
)
def test_receptive_fields(geometry, keys, side):
    assert field_of(geometry) == (keys, side)


def test_effective_field_is_as_large_as_the_attention_reaches():
    """One block of stage 0 with window keys only: 7 tokens of 4 pixels."""
    settings = dict(arch=dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)))
    own = dict(pool_method='none', expand_sizes=(0, 0, 0, 0), out_indices=(0,))
    field = effective_field(FocalTransformer(**settings, **own), 84, 0)
    rows, columns = np.nonzero(field > 0)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (28, 55, 28, 55)
    assert field.max() == 1
    wide = effective_field(FocalTransformer(**settings, out_indices=(0,)), 84, 0)
    assert (wide > 0).all()


def test_numbers_of_the_page():
    """The worked example's numbers are those that the code computes."""
    w, e, f = 7, 3, 7
    page = PAGE.read_text()
    doubled = count(fine_kinds(PAPER, (56, 56), 36))[TWICE]
    layer = FocalTransformer().layers[0].blocks[0].attn
    shapes = [tuple(table.shape) for table in bias_tables(layer.bias)]
    facts = {
        'window keys': w * w,
        'neighbor keys': PAPER.num_neighbors,
        'attended twice': doubled,
        'distinct fine keys': (w + 2 * e) ** 2,
        'coarse keys': f * f,
        'keys of the released code': w * w + PAPER.num_neighbors + f * f,
        'distinct keys': sum(field_of(PAPER).keys),
    }
    for name, number in facts.items():
        assert re.search(rf'^\| {name} \|[^|]*\| {number} \|', page, re.MULTILINE), name
    assert shapes == [(169, 3), (1, 3, 49, 132), (3, 169)]
    for shape in shapes:
        assert str(shape) in page, shape


def test_pictures_of_the_page(tmp_path):
    """Figures are up to date; a figure of something else differs."""
    save_keys(PAPER, (8, 8), tmp_path / 'focal_keys.png')
    save_keys(FocalGeometry(7, 3, 5, 3), (8, 8), tmp_path / 'focal_levels.png')
    stages = [layer.blocks[0].geometry for layer in FocalTransformer().layers]
    save_receptive_field(stages, tmp_path / 'receptive_field.png')
    images = PAGE.parent / 'images'
    for path in tmp_path.iterdir():
        assert f'images/{path.name}' in PAGE.read_text()
        assert looks_like(path, images / path.name), path.name
    assert is_colored(images / 'attention_digits.png')
    save_keys(FocalGeometry(7, 3, 5, 2), (8, 8), tmp_path / 'other.png')
    assert not looks_like(tmp_path / 'other.png', images / 'focal_keys.png')
    save_receptive_field(stages[3:], tmp_path / 'other.png')
    assert not looks_like(tmp_path / 'other.png', images / 'receptive_field.png')
