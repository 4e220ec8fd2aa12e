# SPDX-License-Identifier: Apache-2.0
"""Predictions equal the hosts', and files hold what was predicted."""

import json
import shutil
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import supervision as sv
import torch
from mmdet.apis import DetInferencer
from mmengine.registry import DefaultScope
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmfocal.cli import _load
from mmfocal.engine import InputError
from mmfocal.engine.files import read_run_checkpoint
from mmfocal.inference import Boxes, LabelMap, Predictor, Source, find_run, find_sources
from mmfocal.inference.results import ResultWriter
from mmfocal.models.pretrained import tensors_of
from tests.helpers.config_suite import build, load

CLASSES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


@pytest.fixture(scope='module')
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('pictures') / 'ground.png'
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    cv2.imwrite(str(path), cv2.resize(pixels, (160, 128), interpolation=cv2.INTER_CUBIC))
    return path


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs, as training leaves them: dumped config and checkpoint."""
    folders = {}
    for task in ('maskrcnn', 'upernet', 'cls'):
        torch.manual_seed(0)
        cfg = load(f'quickstart/focal_nano_{task}')
        folders[task] = tmp_path_factory.mktemp(task)
        cfg.dump(folders[task] / 'focal.py')
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = build(cfg)
            model.init_weights()
        meta = dict(dataset_meta=dict(classes=CLASSES))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), folders[task] / 'iter_1.pth')
    return folders


@pytest.fixture(scope='module')
def found(runs: dict[str, Path], picture: Path) -> Boxes:
    return Predictor(runs['maskrcnn'], device='cpu', score_thr=0.01)(picture)


def test_boxes_equal_the_hosts(runs, picture, found):
    host = DetInferencer(str(runs['maskrcnn'] / 'focal.py'), str(runs['maskrcnn'] / 'iter_1.pth'))
    (expected,) = host(str(picture), return_datasamples=False)['predictions']
    assert found.classes == CLASSES and len(found.detections) == len(expected['scores']) > 10
    result = found.to_dict()
    np.testing.assert_allclose(result['scores'], sorted(expected['scores'])[::-1], atol=1e-6)
    order = np.argsort(-np.array(expected['scores']), kind='stable')
    np.testing.assert_allclose(result['bboxes'], np.array(expected['bboxes'])[order], atol=1e-3)
    np.testing.assert_array_equal(result['labels'], np.array(expected['labels'])[order])
    masks = [coco_mask.area(mask) for mask in result['masks']]
    assert masks == [coco_mask.area(expected['masks'][index]) for index in order]


def test_threshold_and_drawing(found):
    best = found.detections.confidence[0]
    kept = Boxes(found.image, CLASSES, found.detections[found.detections.confidence >= best])
    drawn = kept.draw()
    assert drawn.shape == (512, 640, 3)  # enlarged four times, to be legible
    plain = cv2.resize(found.image, (640, 512), interpolation=cv2.INTER_CUBIC)
    changed = np.abs(drawn.astype(int) - plain).max(2) > 40
    x1, y1, x2, y2 = (4 * kept.detections.xyxy[0]).round().astype(int)
    assert changed[min(y2, 511) - 1, x1 : x2 - 1].mean() > 0.9  # the lower side of the box
    changed[max(y1 - 40, 0) : y2 + 4, max(x1 - 4, 0) : x2 + 200] = False
    assert changed.sum() < 20


def test_the_best_box_is_on_top(found):
    """The worse box, which begins lower, has its label where the better box is."""
    boxes = np.array([[40, 30, 100, 110], [40, 36, 100, 100]], float)
    pair, best = (
        Boxes(
            found.image,
            CLASSES,
            sv.Detections(boxes[:count], None, np.array([0.9, 0.5][:count]), np.arange(count)),
        ).draw()
        for count in (2, 1)
    )
    assert (pair != best).any()
    label = np.s_[4 * 30 - 20 : 4 * 30, 4 * 40 : 4 * 40 + 90]
    border = np.s_[4 * 40 : 4 * 110, 4 * 40]  # below both labels
    for part in (label, border):
        assert (pair[part] == best[part]).all()


def test_label_maps_and_views(runs, picture):
    plain, averaged = (
        Predictor(runs['upernet'], device='cpu', tta=tta)(picture) for tta in (False, True)
    )
    assert isinstance(plain, LabelMap) and plain.label_map.shape == (128, 160)
    assert sum(plain.to_dict()['shares']) == pytest.approx(1)
    assert 0 < (plain.label_map == averaged.label_map).mean() < 1
    assert len(np.unique(plain.draw().reshape(-1, 3), axis=0)) > 1000


def test_class_scores(runs, picture):
    predictor = Predictor(runs['cls'], device='cpu')
    scores = predictor(mmcv.imread(str(picture)))
    assert scores.scores.sum() == pytest.approx(1, abs=1e-5)
    result = scores.to_dict()
    assert (
        result['class_name'] == CLASSES[scores.scores.argmax()] == result['top'][0]['class_name']
    )
    plain = cv2.resize(scores.image, (640, 512), interpolation=cv2.INTER_CUBIC)
    changed = (scores.draw() != plain).any(2)
    assert changed[:130].any() and not changed[130:].any()  # three lines of text


def test_json_and_coco(tmp_path, picture, found):
    source, *_ = find_sources([picture])
    for form in ('json', 'coco'):
        writer = ResultWriter(tmp_path / form, form, draw=form == 'json')
        writer.write(source, [found])
        writer.close()
    result = json.loads((tmp_path / 'json/preds/ground.json').read_text())
    assert result == found.to_dict()
    assert cv2.imread(str(tmp_path / 'json/vis/ground.png')).shape == (512, 640, 3)
    coco = COCO(tmp_path / 'coco/coco.json')
    annotations = coco.loadAnns(coco.getAnnIds())
    assert [a['score'] for a in annotations] == pytest.approx(result['scores'])
    assert [coco.cats[a['category_id']]['name'] for a in annotations] == result['classes']
    np.testing.assert_array_equal(coco.annToMask(annotations[0]), found.detections.mask[0])
    assert not (tmp_path / 'coco/vis').exists()


def test_no_result_replaces_another(tmp_path, picture):
    """Frames, images and label maps whose names meet, through ``find_sources`` and by hand."""
    for name in ('clip/000000.png', 'clip/a.png', 'clip.mp4', 'clip_mp4/000000.png', 'clip.gif'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    first = find_sources([tmp_path])
    again = find_sources([tmp_path / 'clip.mp4', tmp_path])
    assert [source.name for source in first] == [
        *('clip/000000', 'clip/a', 'clip_gif', 'clip_mp4', 'clip_mp4_000000')
    ]
    assert [source.name for source in again] == [
        *('clip', 'clip_000000', 'clip_a', 'clip_gif', 'clip_mp4', 'clip_mp4_000000')
    ]
    by_hand = [Source('clip', 'clip.mp4', 'video'), Source('clip/000000', 'a.png', 'image')]
    image = np.full((600, 600, 3), 99, np.uint8)
    for number, sources in enumerate((first, again, by_hand, [by_hand[1]] * 3)):
        writer = ResultWriter(tmp_path / str(number), draw=False)
        expected = []
        for source in sources:
            count = 1 if source.kind == 'image' else 2
            values = [len(expected) + index for index in range(count)]
            expected += values
            writer.write(source, [LabelMap(image, 'x' * 99, np.full((6, 6), v)) for v in values])
        folder = tmp_path / str(number) / 'preds'
        written = [int(cv2.imread(str(path))[0, 0, 0]) for path in folder.rglob('*.png')]
        assert sorted(written) == expected
        assert len(list(folder.rglob('*.json'))) == len(sources)


def test_question_marks_are_cut_from_addresses_only(tmp_path, picture, found):
    shutil.copy(picture, tmp_path / 'what?.png')
    shutil.copy(picture, tmp_path / 'one#1.png')
    (tmp_path / 'folder.png').mkdir()  # is no image
    sources = find_sources([tmp_path, tmp_path / 'what?.png', 'https://host/b.jpg?size=2/3#top'])
    assert [source.name for source in sources] == ['one#1', 'what?', 'what?_png', 'b']
    writer = ResultWriter(tmp_path / 'out')
    for source in sources[:3]:
        assert next(source.frames()).shape == (128, 160, 3)
        writer.write(source, [found])
    writer.write(sources[3], [found])
    names = {path.name for path in (tmp_path / 'out/vis').iterdir()}
    assert names == {'one#1.png', 'what?.png', 'what?_png.png', 'b.jpg'}


def test_reused_folders_are_told(tmp_path, runs, picture, capsys, monkeypatch):
    predict = _load('predict')
    monkeypatch.chdir(tmp_path)
    shutil.copy(picture, 'a.png')
    arguments = [str(runs['cls']), 'a.png', '--device', 'cpu', '--out', 'found']
    predict.main(arguments)
    assert 'not empty' not in capsys.readouterr().out
    predict.main(arguments)
    assert 'found is not empty: files of the same name are replaced' in capsys.readouterr().out
    before = Path('found/vis/a.png').read_bytes()
    with pytest.raises(SystemExit, match=r'vis/a\.png is in found, where results go'):
        predict.main([str(runs['cls']), 'found', '--out', 'found'])
    assert Path('found/vis/a.png').read_bytes() == before


def test_videos(tmp_path, picture, found):
    clip = tmp_path / 'clip.mp4'
    with sv.VideoSink(str(clip), sv.VideoInfo(width=160, height=128, fps=5)) as sink:
        for _ in range(3):
            sink.write_frame(mmcv.imread(str(picture)))
    (source,) = find_sources([clip])
    assert (source.length(), source.frame_rate()) == (3, 5)
    ResultWriter(tmp_path / 'out').write(source, (found for _ in source.frames()))
    drawn = list(sv.get_video_frames_generator(str(tmp_path / 'out/vis/clip.mp4')))
    assert len(drawn) == 3 and drawn[0].shape == (512, 640, 3)
    assert np.abs(drawn[0].astype(int) - found.draw()).mean() < 12  # compression
    assert len(json.loads((tmp_path / 'out/preds/clip.json').read_text())) == 3


def test_sources(tmp_path):
    for name in ('b.png', 'a.jpg', 'a.png', 'deep/c.JPG', 'clip.mp4', 'notes.txt'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sources = find_sources([tmp_path, tmp_path / 'b.png', f'{tmp_path}/*.jpg', '0'])
    assert [(source.name, source.kind) for source in sources] == [
        *[('a', 'image'), ('a_png', 'image'), ('b', 'image'), ('clip', 'video')],
        *[('deep/c', 'image'), ('b_png', 'image'), ('a_jpg', 'image'), ('camera0', 'camera')],
    ]
    for name in ('.hidden.png', '.thumbs/a.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_sources([tmp_path]) == sources[:5]
    assert [source.kind for source in find_sources([f'{tmp_path}/*'])] == 3 * ['image'] + ['video']
    with pytest.raises(FileNotFoundError, match=r'absent\.png does not exist'):
        find_sources(['absent.png'])
    with pytest.raises(ValueError, match='neither an image nor a video'):
        find_sources([tmp_path / 'notes.txt'])
    with pytest.raises(ValueError, match='not an image that OpenCV can read'):
        next(sources[2].frames())


def test_cameras(monkeypatch, picture):
    class Camera:
        frames: list = []  # left to read; none if the camera cannot be opened
        is_released = False

        def __init__(self, number: int) -> None:
            assert number == 1

        def isOpened(self) -> bool:
            return bool(self.frames)

        def read(self) -> tuple[bool, np.ndarray | None]:
            return (True, self.frames.pop(0)) if self.frames else (False, None)

        def release(self) -> None:
            Camera.is_released = True

    monkeypatch.setattr(cv2, 'VideoCapture', Camera)
    (camera,) = find_sources(['1'])
    assert (camera.name, camera.length(), camera.frame_rate()) == ('camera1', None, 25.0)
    image = mmcv.imread(picture)
    Camera.frames = [image, image[::-1]]
    read = list(camera.frames())
    assert len(read) == 2 and (read[0] == image).all() and (read[1] == image[::-1]).all()
    assert Camera.is_released
    Camera.is_released = False
    with pytest.raises(ValueError, match='camera 1 cannot be opened'):
        next(camera.frames())
    assert Camera.is_released


def test_runs(tmp_path, runs):
    run = runs['cls']
    assert find_run(run) == (str(run / 'focal.py'), str(run / 'iter_1.pth'))
    assert find_run(run, 'mine.pth')[1] == 'mine.pth'
    (tmp_path / 'focal.py').touch()
    with pytest.raises(FileNotFoundError, match='no complete checkpoint'):
        find_run(tmp_path)
    torch.save({}, tmp_path / 'best_accuracy_top1_iter_1.pth')
    torch.save({}, tmp_path / 'iter_2.pth')
    assert find_run(tmp_path)[1].endswith('best_accuracy_top1_iter_1.pth')
    with pytest.raises(ValueError, match='needs a checkpoint'):
        find_run('focal_nano_cls')
    with pytest.raises(ValueError, match='does not fit the model'):
        Predictor('focal_nano_upernet', run / 'iter_1.pth', device='cpu')


def test_addresses_need_a_checksum(runs, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    address = (runs['cls'] / 'iter_1.pth').as_uri()
    with pytest.raises(ValueError, match=r'iter_1\.pth: downloads need a checksum; .*#sha256='):
        Predictor('focal_nano_cls', address, device='cpu')
    assert not list(tmp_path.rglob('*.pth'))
    Predictor('focal_nano_cls', f'{address}#unverified', device='cpu')


def test_errors_of_the_command_line(runs, picture):
    predict = _load('predict')
    run = str(runs['cls'])
    with pytest.raises(SystemExit, match='error: nothing to predict on'):
        predict.main([run, 'model.pth'])
    with pytest.raises(SystemExit, match=r'error: absent\.png does not exist'):
        predict.main([run, 'absent.png'])
    with pytest.raises(SystemExit, match='error: focal_nano_cls is a config'):
        predict.main(['focal_nano_cls', str(picture)])
    with pytest.raises(SystemExit, match=r'^error: checkpoint absent\.pth does not exist$'):
        predict.main(['focal_nano_cls', 'absent.pth', str(picture)])
    with pytest.raises(SystemExit, match=r'^error: score_thr=1\.5; expected 0 to 1$'):
        predict.main([run, str(picture), '--score-thr', '1.5'])
    with pytest.raises(
        SystemExit, match=r'^error: --out .*ground\.png is a file; expected a folder'
    ):
        predict.main([run, str(picture), '--out', str(picture)])
    for device in ('cuda:99', 'nonsense'):
        with pytest.raises(SystemExit, match=rf"^error: device '{device}' cannot be used: .+$"):
            predict.main([run, str(picture), '--device', device])


@pytest.mark.parametrize('content', [[1, 2], torch.zeros(3), {}])
def test_files_without_a_model_are_refused_in_one_line(runs, picture, tmp_path, content):
    path = str(tmp_path / 'odd.pth')
    torch.save(content, path)
    with pytest.raises(SystemExit, match=r'^error: .*odd\.pth.* (expected a dict|no tensors).*'):
        _load('predict').main([str(runs['cls']), path, str(picture), '--out', str(tmp_path)])
    with pytest.raises(InputError, match=r'odd\.pth'):  # test.py reads by these too
        tensors_of(read_run_checkpoint(path), path)


def test_other_classes_than_those_of_the_test_data_are_told(runs, tmp_path, capfd):
    Predictor(runs['maskrcnn'], device='cpu')
    assert 'classes' not in ''.join(capfd.readouterr())
    content = torch.load(runs['maskrcnn'] / 'iter_1.pth', weights_only=True)
    content['meta']['dataset_meta'] = dict(classes=(*CLASSES[:8], 'x', 'y'))
    torch.save(content, tmp_path / 'other.pth')
    predictor = Predictor(runs['maskrcnn'], tmp_path / 'other.pth', device='cpu')
    told = ''.join(capfd.readouterr())
    assert 'other.pth and of the test data differ from index 8 on: x, y (of 10) and ' in told
    assert f'{CLASSES[8]}, {CLASSES[9]}' in told and predictor.classes[8:] == ('x', 'y')


def test_unreadable_inputs_are_skipped(tmp_path, runs, picture, capsys):
    scans = tmp_path / 'scans'
    scans.mkdir()
    for name in ('a.png', 'c.png'):
        shutil.copy(picture, scans / name)
    broken = [scans / 'b.png', scans / 'b.mp4', scans / 'd.jpg']
    broken[0].write_bytes(b'text')
    broken[1].write_bytes(b'text')
    broken[2].symlink_to('absent.jpg')
    options = ['--out', str(tmp_path / 'out'), '--format', 'coco', '--device', 'cpu', '--no-draw']
    with pytest.raises(SystemExit, match=r'^error: 3 of 5 inputs cannot be read'):
        _load('predict').main([str(runs['maskrcnn']), str(scans), *options])
    printed = capsys.readouterr().out
    for path in broken:
        assert f'skipped {path}: ' in printed
    content = json.loads((tmp_path / 'out/coco.json').read_text())
    assert [Path(image['file_name']).name for image in content['images']] == ['a.png', 'c.png']
