# SPDX-License-Identifier: Apache-2.0
"""A few images of a COCO file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """Images 1 to 4 with 1, 2, 3 and 3 instances; a crowd in image 3."""
    counts = {1: 1, 2: 2, 3: 3, 4: 3}
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg') for i in counts],
        annotations=[
            dict(image_id=i, id=10 * i + k, iscrowd=int(i == 3))
            for i, count in counts.items()
            for k in range(count)
        ],
        categories=[dict(id=1, name='thing')],
    )
    path = tmp_path / 'all.json'
    path.write_text(json.dumps(content))
    return path


def run(repo_root: Path, *args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, repo_root / 'tools/data/subset_coco.py', *args]
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)


def test_keeps_whole_images_in_order(annotations: Path, repo_root: Path) -> None:
    out = annotations.with_name('few.json')
    result = run(repo_root, annotations, out, '--images', 2, '--instances', 2, 3)
    assert result.returncode == 0, result.stderr
    content = json.loads(out.read_text())
    assert [image['id'] for image in content['images']] == [2, 4]
    assert [a['id'] for a in content['annotations']] == [20, 21, 40, 41, 42]
    assert content['categories'] == [dict(id=1, name='thing')]


def test_too_few_images_and_existing_file(annotations: Path, repo_root: Path) -> None:
    out = annotations.with_name('few.json')
    result = run(repo_root, annotations, out, '--images', 3, '--instances', 2, 3)
    assert 'but 2 images have 2 to 3 instances' in result.stderr
    assert not out.exists()
    out.touch()
    result = run(repo_root, annotations, out, '--images', 1)
    assert 'exists; --overwrite replaces it' in result.stderr
    result = run(repo_root, annotations, annotations, '--images', 1, '--overwrite')
    assert f'all.json is the input {annotations}; choose another output' in result.stderr
    assert len(json.loads(annotations.read_text())['images']) == 4


@pytest.mark.parametrize(
    ('text', 'images', 'words'),
    [
        ('', -1, '--images -1, but 3 images have 1 to'),
        ('', 0, '--images 0, but 3 images'),
        ('{}', 1, "all.json has no 'images'; expected a COCO"),
        ('{', 1, 'Expecting property name'),
    ],
)
def test_bad_input_is_told_in_one_line(annotations, repo_root, text, images, words):
    out = annotations.with_name('few.json')
    if text:
        annotations.write_text(text)
    result = run(repo_root, annotations, out, '--images', images, '--instances', 1, 3)
    assert result.stderr.startswith('error: ') and words in result.stderr
    assert not out.exists()
