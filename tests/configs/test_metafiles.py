# SPDX-License-Identifier: Apache-2.0
"""Configs, README rows and metafile entries are the same set, and the hosts can read them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mmengine.hub import get_config
from mmengine.infer import BaseInferencer
from mmengine.utils import get_installed_path
from modelindex.load_model_index import load as load_index

from tools.dev.model_zoo.paper import read_paper
from tools.dev.model_zoo.zoo import BLOCK, find_configs

ROOT = Path(__file__).resolve().parents[2]
READMES = sorted((ROOT / 'configs').rglob('*.md'))
# The original MMEngine looks beside the package's metadata, which an editable install keeps apart.
is_installed = pytest.mark.skipif(
    not Path(get_installed_path('mmfocal'), '.mim').exists(),
    reason='MMEngine does not find mmfocal: install it, with original packages not as editable',
)


@pytest.fixture(scope='module')
def models() -> list[dict]:
    """Entries of every metafile that the index names."""
    paths = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert sorted(paths) == sorted(
        str(path.relative_to(ROOT)) for path in ROOT.glob('configs/**/metafile.yml')
    )
    return [
        model for path in paths for model in yaml.safe_load((ROOT / path).read_text())['Models']
    ]


def readme_rows() -> dict[str, float]:
    """Millions of parameters by config, as the READMEs' tables link to it."""
    rows = {}
    for readme in READMES:
        for block in BLOCK.finditer(readme.read_text()):
            header, _, *lines = (
                [cell.strip() for cell in line.strip('|').split('|')]
                for line in block[0].splitlines()
                if line.startswith('|')
            )
            for line in lines:
                href = re.fullmatch(r'\[`\w+`\]\((.+)\)', line[0])[1]
                config = (readme.parent / href).resolve().relative_to(ROOT).as_posix()
                assert config not in rows, f'{config} is in two READMEs'
                rows[config] = float(line[header.index('params (M), ours')])
    return rows


def test_configs_readmes_and_metafiles_agree(models: list[dict]) -> None:
    configs = {f'configs/{config}' for config in find_configs(ROOT / 'configs')}
    assert len(configs) > 70
    rows = readme_rows()
    assert set(rows) == configs
    assert len(models) == len(configs)
    assert {model['Config'] for model in models} == configs
    for model in models:
        assert model['Name'] == Path(model['Config']).stem
        assert f'{model["Metadata"]["Parameters"] / 1e6:.2f}' == f'{rows[model["Config"]]:.2f}'
    assert len({model['Name'] for model in models}) == len(models)


def test_the_paper_file_has_every_config() -> None:
    listed = {row.config for row in read_paper().rows}
    assert set(find_configs(ROOT / 'configs')) <= listed


def test_collections_exist_once_with_their_readme_and_paper(models: list[dict]) -> None:
    collections = [
        collection
        for path in ROOT.glob('configs/**/metafile.yml')
        for collection in yaml.safe_load(path.read_text()).get('Collections', [])
    ]
    names = [collection['Name'] for collection in collections]
    assert len(set(names)) == len(names)
    assert {model['In Collection'] for model in models} <= set(names)
    for collection in collections:
        text = (ROOT / collection['README']).read_text()
        paper = collection['Paper']
        assert f'[{paper["Title"]}]({paper["URL"]})' in text, collection['README']


@pytest.mark.parametrize('readme', READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(readme: Path) -> None:
    for href in re.findall(r'\]\(([^)#]+)[^)]*\)', readme.read_text()):
        if not href.startswith('https://'):
            assert (readme.parent / href).exists(), href


@pytest.mark.parametrize('readme', READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_name_what_exists(readme: Path) -> None:
    for block in re.findall(r'```shell\n(.+?)```', readme.read_text(), re.DOTALL):
        for path in re.findall(r'(?:configs|tools)/\S+\.(?:py|sh)', block):
            assert (ROOT / path).is_file(), path
        for config, folder in re.findall(r'configs/\S*?(\w+)\.py work_dirs/(\w+)', block):
            assert config == folder


def test_a_model_index_library_reads_it() -> None:
    index = load_index(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert len(index.models) == len(find_configs(ROOT / 'configs'))
    (model,) = (model for model in index.models if model.name == 'focal_t_retinanet_1x')
    assert model.weights is None and model.paper['URL'].endswith('2107.00641')


@is_installed
def test_mmengine_finds_configs_and_names() -> None:
    name = 'detection/focal_t_retinanet_1x.py'
    assert get_config(f'mmfocal::{name}').model.type == 'RetinaNet'
    with pytest.raises(AssertionError, match='Cannot find `Weights`'):  # there are none
        get_config(f'mmfocal::{name}', pretrained=True)
    listed = BaseInferencer.list_models('mmfocal', 'focal_t_upernet')
    assert listed == ['focal_t_upernet_160k']


@pytest.mark.slow
def test_committed_files_are_up_to_date() -> None:
    command = [sys.executable, '-m', 'tools.dev.model_zoo.tables', '--check']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
