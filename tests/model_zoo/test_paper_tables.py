# SPDX-License-Identifier: Apache-2.0
"""The paper's tables: what is read, what is computed from configs, what comes from runs."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.helpers.recipe_numbers import FLOPS_TOLERANCE, RecipeNumbers, assert_printed, parse
from tools.dev.model_zoo.pages import Cell, Grid, drop_empty_columns, markdown_table
from tools.dev.model_zoo.paper import (
    PAPER_FILE,
    Ours,
    Paper,
    Row,
    compute,
    read_paper,
    read_results,
    read_scores,
)
from tools.dev.model_zoo.zoo import BLOCK, agrees, paper_page, zoo_files

NANO = 'quickstart/focal_nano_cls.py'


@pytest.fixture(scope='module')
def paper() -> Paper:
    return read_paper()


def write_paper(folder: Path, change: Callable[[dict], None]) -> Path:
    """The classifiers' table, changed."""
    content = yaml.safe_load(PAPER_FILE.read_text())
    content['tables'] = content['tables'][:1]
    change(content['tables'][0])
    path = folder / 'paper.yml'
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def nano_paper(folder: Path) -> Paper:
    row = dict(name='Nano', config=NANO, shape=[56, 56], scores=dict(top1=12.5))
    return read_paper(write_paper(folder, lambda table: table.update(rows=[row])))


def page(paper: Paper, configs: Path, ours: dict, scores: dict | None = None) -> str:
    return paper_page(paper, ours, scores or {}, configs, configs)


def row_of(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f'| {name} |'))
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_a_changed_depth_changes_its_row(tmp_path: Path, repo_root: Path) -> None:
    configs = tmp_path / 'configs'
    shutil.copytree(repo_root / 'configs', configs)
    paper = nano_paper(tmp_path)
    before = compute(paper.rows, configs)
    base = configs / '_base_' / 'backbones' / 'focal_nano.py'
    base.write_text(base.read_text().replace('depths=(2, 2, 2, 2)', 'depths=(2, 2, 4, 2)'))
    after = compute(paper.rows, configs)
    c, h, region = 128, 4, 6 + 3  # two more blocks of stage 3
    added = 2 * (12 * c**2 + 13 * c + 169 * h + 49 * 132 * h + region**2 * h + 50)
    assert after[NANO].params - before[NANO].params == added
    assert after[NANO].flops > before[NANO].flops
    shown = [row_of(page(paper, configs, ours), 'Nano')[4] for ours in (before, after)]
    assert shown == [f'{ours[NANO].params / 1e6:.2f}' for ours in (before, after)]
    assert shown[0] != shown[1]


def test_a_row_without_its_config_says_so(tmp_path: Path, repo_root: Path) -> None:
    def change(table: dict) -> None:
        table['rows'] = [
            dict(name='Missing', config='detection/none.py', params=1.5, scores=dict(top1=2.5)),
            dict(name='None', config=None, flops=3.5),
        ]

    configs = repo_root / 'configs'
    paper = read_paper(write_paper(tmp_path, change))
    text = page(paper, configs, compute(paper.rows, configs))
    assert row_of(text, 'Missing')[1:10] == [
        *('`none`', '224x224', 'classification', '1.5', 'no config', '–', 'no config'),
        *('2.5', 'no config'),
    ]
    assert row_of(text, 'None')[1:] == [
        *('none', '224x224', 'classification', '–', '–', '3.5', '–', '–', '–', '–'),
    ]


def write_run(work_dir: Path, config: str, *scalars: dict) -> Path:
    """Write the files that MMEngine leaves after a training of 12 epochs."""
    log = work_dir / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text(''.join(json.dumps(line) + '\n' for line in scalars))
    log.with_name('config.py').write_text('train_cfg = dict(max_epochs=12)\nmodel = dict()\n')
    (work_dir / f'{config}.py').write_text('')  # tools/test.py overwrites it
    return work_dir


def write_test(work_dir: Path, stamp: str, model: str, **metrics: float) -> None:
    (work_dir / stamp / 'vis_data').mkdir(parents=True)
    (work_dir / stamp / 'vis_data' / 'config.py').write_text(f'model = {model}\n')
    (work_dir / stamp / f'{stamp}.json').write_text(json.dumps(metrics))


TRAINED = dict(step=9, epoch=9, lr=1.0, loss=2.0, time=1.0)


def test_scores_of_a_run(tmp_path: Path) -> None:
    first = {'step': 11, 'coco/bbox_mAP': 0.4}
    last = {'step': 12, 'coco/bbox_mAP': 0.43749, 'coco/bbox_mAP_50': 0.652, 'coco/segm_mAP': 0.41}
    run = write_run(tmp_path / 'renamed', 'focal_t_maskrcnn_1x', TRAINED, first, last)
    assert read_scores([run]) == {
        'focal_t_maskrcnn_1x': dict(box='43.7', mask='41.0', box50='65.2'),
    }


def test_scores_of_an_unfinished_run_say_where_it_stands(tmp_path: Path) -> None:
    run = write_run(tmp_path, 'a', TRAINED, {'step': 9, 'accuracy/top1': 71.26})
    assert read_scores([run]) == {'a': dict(top1='71.3 (epoch 9 of 12)')}


def test_scores_of_tests_come_before_validation(tmp_path: Path) -> None:
    run = write_run(tmp_path / 'a', 'a', TRAINED, {'step': 12, 'mIoU': 40.0})
    write_test(run, '20260102_000000', "dict(type='EncoderDecoder')", mIoU=41.0)
    write_test(run, '20260103_000000', "dict(type='SegTTAModel', module=dict())", mIoU=42.0)
    assert read_scores([run]) == {'a': dict(miou='41.0', miou_ms='42.0')}
    tested = tmp_path / 'b'
    write_test(tested, '20260102_000000', "dict(type='EncoderDecoder')", mIoU=39.0)
    (tested / 'b.py').write_text('')
    assert read_scores([tested]) == {'b': dict(miou='39.0')}


def test_scores_appear_in_their_row(tmp_path: Path, repo_root: Path) -> None:
    run = write_run(
        tmp_path / 'run', Path(NANO).stem, TRAINED, {'step': 12, 'accuracy/top1': 97.1}
    )
    paper, configs = nano_paper(tmp_path), repo_root / 'configs'
    ours = compute(paper.rows, configs)
    for scores, expected in (({}, 'not run'), (read_scores([run]), '97.1')):
        cells = row_of(page(paper, configs, ours, scores), 'Nano')
        assert cells[6:8] == ['12.5', expected]


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'holds no config \(\*\.py\) of a run'):
        read_scores([tmp_path])
    (tmp_path / 'a.py').write_text('')
    with pytest.raises(FileNotFoundError, match='contains no training log'):
        read_scores([tmp_path])
    runs = [write_run(tmp_path / name, 'a', TRAINED) for name in ('x', 'y')]
    with pytest.raises(ValueError, match=r'x and .*y are both runs of a'):
        read_scores(runs)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            dict(also=dict(top5=1, box=2)),
            "column or score must be one of params, .*, got 'box'",
        ),
        (dict(method='yolo'), "method must be one of classification, retinanet.*, got 'yolo'"),
        (dict(notes=['nothing']), "note must be one of v1.*, got 'nothing'"),
        (dict(differs=dict(flops=['nothing'])), "note must be one of v1.*, got 'nothing'"),
        (dict(differs=dict(top1=['v1'])), "column must be one of params, flops.*, got 'top1'"),
        (dict(scores=dict(fun=1)), "score must be one of top1.*, got 'fun'"),
        (dict(convention='mine'), "convention must be one of default.*, got 'mine'"),
        (dict(flop=3), "key must be one of name.*, got 'flop'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: dict, message: str) -> None:
    path = write_paper(tmp_path, lambda table: table['rows'][1].update(change))
    with pytest.raises(ValueError) as error:
        read_paper(path)
    place = f"{path}: table 'Classification on ImageNet-1K', row 'Focal-S': "
    assert re.match(re.escape(place) + message, str(error.value))


@pytest.mark.parametrize('key', ['method', 'config'])
def test_missing_keys_are_named(tmp_path: Path, key: str) -> None:
    def change(table: dict) -> None:
        table['rows'][0].pop(key, None)
        table['defaults'].pop(key, None)

    with pytest.raises(ValueError, match=f"row 'Focal-T': '{key}' is missing"):
        read_paper(write_paper(tmp_path, change))


def test_a_config_is_counted_in_one_way(tmp_path: Path) -> None:
    def change(table: dict) -> None:
        table['rows'].append({**table['rows'][0], 'name': 'Again', 'shape': [448, 448]})

    with pytest.raises(ValueError, match=r"focal_t_in1k\.py: rows 'Focal-T' and 'Again' count"):
        read_paper(write_paper(tmp_path, change))


@pytest.mark.parametrize(
    ('printed', 'value', 'expected'),
    [(39.4, 39.38, True), (110.0, 109.66, False), (101, 100.9, True), (45, 45.84, False)],
)
def test_agreement_is_to_the_printed_digits(printed: float, value: float, expected: bool) -> None:
    assert agrees(printed, value) is expected


def test_cells_are_linked_and_empty_columns_vanish() -> None:
    rows = [[Cell('a'), Cell('c', 'd.py', is_code=True), Cell('–'), Cell('')]]
    grid = Grid('T', 'Table 1', ['x', 'y', 'z', 'notes'], rows, ['why'])
    assert markdown_table(drop_empty_columns(grid, Cell('–'))).splitlines() == [
        '| x | y |',
        '| --- | --- |',
        '| a | [`c`](d.py) |',
        '',
        '1. why',
    ]


def test_both_numbers_of_a_source_that_differs_from_itself(
    tmp_path: Path, repo_root: Path
) -> None:
    row = dict(name='Nano', config=NANO, shape=[56, 56], flops=5.2, scores=dict(top1=58.9))
    row['also'] = dict(flops=4.9, top1=59.0)
    paper = read_paper(write_paper(tmp_path, lambda table: table.update(rows=[row])))
    cells = row_of(page(paper, repo_root / 'configs', {}), 'Nano')
    assert '5.2 or 4.9' in cells and '58.9 or 59.0' in cells


def test_published_runs_are_those_of_the_docs(repo_root: Path) -> None:
    """``results.yml`` against ``docs/nano_results.md`` and the pages of runs that overfit."""
    docs = repo_root / 'docs'
    text = (docs / 'nano_results.md').read_text()
    last = re.findall(
        r'^\| 360 \| (\S+) \| (\S+) \|$', (docs / 'real_run.md').read_text(), re.MULTILINE
    )
    points = re.search(
        r'box AP after .*, (\S+) \|$', (docs / 'reppointsv2.md').read_text(), re.MULTILINE
    )
    box, mask = last[0]
    found = {
        'focal_t_maskrcnn_overfit': dict(
            box=f'{100 * float(box):.1f}', mask=f'{100 * float(mask):.1f}'
        ),
        'focal_nano_reppointsv2_overfit': dict(box=f'{100 * float(points[1]):.1f}'),
    }
    for line in re.findall(r'^\| \[.*', text, re.MULTILINE):
        config, _, *values = (cell.strip() for cell in line.strip('|').split('|'))
        name = re.search(r'(\w+)\.py', config)[1]
        numbers = [re.match(r'[\d.]+', value) for value in values]
        scores = zip(('box', 'mask', 'miou', 'top1'), (100, 100, 1, 1), numbers)
        found[name] = {key: f'{factor * float(n[0]):.1f}' for key, factor, n in scores if n}
    assert found == read_results()


@pytest.fixture(scope='module')
def committed(repo_root: Path) -> dict[str, Ours]:
    """Numbers of the metafiles; another test recomputes them."""
    ours = {}
    for path in repo_root.glob('configs/**/metafile.yml'):
        for model in yaml.safe_load(path.read_text())['Models']:
            data = model['Metadata']
            unit = 'Epochs' if 'Epochs' in data else 'Iterations'
            values = (data['Parameters'], data['FLOPs'], unit, data[unit], data['Batch Size'])
            ours[model['Config'].removeprefix('configs/')] = Ours(*values)
    return ours


@pytest.mark.parametrize('expected', parse(), ids=lambda expected: expected.name)
def test_committed_numbers_are_the_recipes(
    expected: RecipeNumbers, paper: Paper, committed: dict
) -> None:
    ours = committed[f'{expected.name}.py']
    (row,) = (row for row in paper.rows if row.config == f'{expected.name}.py')
    assert_printed(ours.params / 1e6, expected.params, 'parameters')
    if row.convention in expected.flops:
        flops = float(expected.flops[row.convention])
        assert ours.flops / 1e9 == pytest.approx(flops, rel=FLOPS_TOLERANCE)


def differing(row: Row, ours: Ours | None) -> set[str]:
    """Computed columns that differ from what is printed in the row."""
    if ours is None:
        return set()
    printed = dict(params=row.params, flops=row.flops)
    values = dict(params=ours.params / 1e6, flops=ours.flops / 1e9)
    return {
        key
        for key in printed
        if printed[key] is not None and not agrees(printed[key], values[key])
    }


def test_exactly_the_differences_to_the_paper_are_explained(paper: Paper, committed: dict) -> None:
    for table in paper.tables:
        for row in table.rows:
            found = differing(row, committed.get(row.config))
            assert found == set(row.differs), f'{table.title}, {row.name}'
            assert all(row.differs.values()), f'{table.title}, {row.name}: a column without note'


def test_what_is_called_close_is_as_close_as_said(paper: Paper, committed: dict) -> None:
    note = yaml.safe_load(PAPER_FILE.read_text())['notes']['close']
    limit = float(re.search(r'within ([\d.]+) %', note)[1]) / 100
    found = 0
    for row in (row for table in paper.tables for row in table.rows):
        for column in (column for column, notes in row.differs.items() if note in notes):
            ours = getattr(committed[row.config], column) / dict(params=1e6, flops=1e9)[column]
            assert ours == pytest.approx(getattr(row, column), rel=limit), row.name
            found += 1
    assert found


def test_every_note_is_used(paper: Paper) -> None:
    used = {note for table in paper.tables for row in table.rows for note in row.all_notes}
    assert used == set(yaml.safe_load(PAPER_FILE.read_text())['notes'].values())


SAMPLE = (  # every method, mostly with configs that tests/helpers/recipe_numbers.py lacks
    *('classification/focal_t_in1k.py', 'classification/ablations/swin_t_window14_in1k.py'),
    *('detection/ablations/swin_t_retinanet_3x.py', 'detection/focal_t_maskrcnn_1x.py'),
    *('quickstart/swin_nano_maskrcnn.py', 'detection/focal_s_cascade_3x.py'),
    *('detection/focal_s_atss_3x.py', 'detection/focal_t_reppointsv2_fpn_3x.py'),
    *('detection/focal_s_sparsercnn_3x.py', 'detection/focal_t_htcpp_3x.py'),
    'detection/focal_t_fasterrcnn_1x.py',
    *('quickstart/focal_nano_dyhead.py', 'segmentation/focal_t_upernet_160k.py'),
)


@pytest.mark.parametrize('config', SAMPLE)
def test_committed_numbers_are_those_of_the_configs(
    config: str, paper: Paper, committed: dict, repo_root: Path
) -> None:
    (row,) = (row for row in paper.rows if row.config == config)
    assert compute([row], repo_root / 'configs') == {config: committed[config]}


def test_the_sample_has_every_method(paper: Paper) -> None:
    sampled = {row.method.name for row in paper.rows if row.config in SAMPLE}
    assert sampled == {method.name for method in paper.methods.values()}


def test_committed_files_follow_from_the_numbers(
    tmp_path: Path, paper: Paper, committed: dict, repo_root: Path
) -> None:
    """No generated file reads another: all are generated in a folder that has none of them."""
    ignored = shutil.ignore_patterns('metafile.yml', '__pycache__')
    shutil.copytree(repo_root / 'configs', tmp_path / 'configs', ignore=ignored)
    for readme in tmp_path.rglob('*.md'):
        readme.write_text(BLOCK.sub(r'\1\3', readme.read_text()))
    files = zoo_files(tmp_path, paper, committed, read_results())
    assert {path.name for path in files} >= {'paper_tables.md', 'metafile.yml', 'retinanet.md'}
    for path, text in files.items():
        original = repo_root / path.relative_to(tmp_path)
        assert original.read_text() == text, f'run tools.dev.model_zoo.tables: {original}'
