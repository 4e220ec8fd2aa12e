# SPDX-License-Identifier: Apache-2.0
"""Whole detectors: their sizes, a training step, testing in several views, two processes."""

from pathlib import Path

import pytest
import torch
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmfocal.analysis.complexity import complexity
from mmfocal.detection import RepPointsV2Detector
from tests.helpers.processes import run_in_processes

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
NANO = 'quickstart/focal_nano_reppointsv2.py'


def load(name: str) -> Config:
    cfg = Config.fromfile(CONFIGS / name)
    cfg.model.backbone.init_cfg = None  # no weights to load
    return cfg


def build(cfg: Config) -> nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        model.init_weights()
    return model


def sample(size: tuple[int, int], boxes: list[tuple[float, ...]], **meta) -> DetDataSample:
    meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)) | meta
    found = DetDataSample(metainfo=meta)
    found.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float).reshape(-1, 4),
        labels=torch.arange(len(boxes)),
    )
    return found


def batch() -> dict:
    """Two images of different size, one of them without objects."""
    sizes = [(96, 128), (128, 72)]
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in sizes]
    boxes = [[(5, 9, 70, 80), (60, 20, 84, 44)], []]
    return dict(inputs=images, data_samples=[sample(*pair) for pair in zip(sizes, boxes)])


def loss_of(model: nn.Module) -> Tensor:
    losses = model(**model.data_preprocessor(batch(), training=True), mode='loss')
    assert set(losses) == {
        *('loss_cls', 'loss_pts_init', 'loss_pts_refine'),
        *('loss_heatmap', 'loss_offset', 'loss_foreground'),
    }
    return sum(losses.values())


def millions(module: nn.Module) -> float:
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 2)


def test_parameters_of_the_published_model():
    model = build(load('detection/focal_t_reppointsv2_3x.py'))
    assert type(model) is RepPointsV2Detector
    found = [millions(part) for part in (model.neck, model.bbox_head, model)]
    assert found == [10.19, 7.21, 45.84]


def test_flops_of_the_published_model():
    cfg = load('detection/focal_t_reppointsv2_3x.py')
    square, wide = (complexity(cfg, shape) for shape in ((1280, 1280), (800, 1280)))
    assert square.flops('reppointsv2') == pytest.approx(475.9e9, rel=2e-3)
    assert square.flops() == pytest.approx(477.1e9, rel=2e-3)
    assert wide.flops('reppointsv2') == pytest.approx(299.9e9, rel=2e-3)


@pytest.mark.parametrize(
    'name',
    [
        NANO,
        pytest.param('detection/focal_t_reppointsv2_3x.py', marks=pytest.mark.slow),
    ],
)
def test_gradients_reach_every_parameter(name):
    model = build(load(name)).train()
    loss = loss_of(model)
    loss.backward()
    assert loss.isfinite()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, grad in trained.items() if grad is None]
    assert all(grad.isfinite().all() for grad in trained.values())
    # blocks of the backbone may be dropped or begin as identities
    still = [name for name, grad in trained.items() if not grad.any()]
    assert not [name for name in still if not name.startswith('backbone')]


def test_the_loss_falls():
    model = build(load(NANO)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        torch.manual_seed(1)  # the same two images
        loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses


def train_in_one_process(rank: int, folder: Path) -> None:
    """The first process sees an object, the second one none."""
    torch.manual_seed(0)
    model = build(load(NANO)).train()
    data = batch()
    data = {key: values[rank : rank + 1] for key, values in data.items()}
    data = model.data_preprocessor(data, training=True)
    wrapped = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):  # the second step fails if a parameter was left out of the first
        losses = wrapped(**data, mode='loss')
        sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    torch.save(gradients, folder / f'{rank}.pth')


@pytest.mark.slow
def test_two_processes(tmp_path):
    run_in_processes(train_in_one_process, tmp_path, tmp_path)
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1))
    assert all(gradient.any() for gradient in first.values())
    assert [name for name in first if not first[name].equal(second[name])] == []


def test_mixed_precision_step():
    model = build(load(NANO)).train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = loss_of(model)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_mmdets_first_reppoints_has_the_same_initial_points():
    """This holds with the same weights if the foreground branch adds nothing to the features."""
    cfg = load(NANO)
    head = cfg.model.bbox_head
    head.pop('point_norm_cfg')
    second = build(cfg).eval()
    for key in ('corner_channels', 'loss_heatmap', 'loss_offset', 'loss_foreground'):
        head.pop(key)
    head.type = 'RepPointsHead'
    head.loss_cls = dict(type='FocalLoss', use_sigmoid=True)
    cfg.model.type = 'RepPointsDetector'
    for stage in cfg.model.train_cfg.values():
        stage.pos_weight = -1
    first = build(cfg).eval()
    weights = {k: v for k, v in second.state_dict().items() if k in first.state_dict()}
    deformed = (
        'bbox_head.reppoints_cls_conv.weight',
        'bbox_head.reppoints_pts_refine_conv.weight',
    )
    for key in deformed:
        weights[key] = weights[key][:, :-6]  # without corner maps
    missing = first.load_state_dict(weights, strict=False).missing_keys
    assert missing == ['bbox_head.moment_transfer']
    for parameter in second.bbox_head.foreground_embedding.norm.parameters():
        nn.init.zeros_(parameter)
    image = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        points = second._forward(image)[1]
        first.bbox_head.train()  # in which it returns the initial points
        expected = first._forward(image)[1]
    for found, level in zip(points, expected):
        assert level.std() > 0
        torch.testing.assert_close(found, level)


def test_views_are_merged():
    cfg = load(NANO)
    model = build(cfg)
    nn.init.constant_(model.bbox_head.reppoints_cls_out.bias, 0.0)  # everything is an object
    with torch.no_grad():
        model.bbox_head.reppoints_pts_init_out.bias[:4] = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    nms = dict(type='nms', iou_threshold=0.6)
    tta = DetTTAModel(tta_cfg=Config(dict(nms=nms, max_per_img=50)), module=model).eval()
    image = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    views = dict(inputs=[], data_samples=[])
    for scale in (1, 2):
        for flip in (False, True):
            view = image.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
            size = tuple(view.shape[1:])
            views['inputs'].append([view.flip(2) if flip else view])
            meta = dict(
                ori_shape=(64, 96),
                scale_factor=(scale, scale),
                flip=flip,
                flip_direction='horizontal' if flip else None,
            )
            views['data_samples'].append([sample(size, [], **meta)])
    with torch.no_grad():
        (merged,) = tta.test_step(views)
        single = model.test_step(
            dict(inputs=views['inputs'][0], data_samples=views['data_samples'][0])
        )[0].pred_instances
    found = merged.pred_instances
    assert len(found) == 50 and found.scores.isfinite().all()
    assert (
        found.bboxes.min() >= 0 and (found.bboxes.amax(0) <= torch.tensor([96, 64, 96, 64])).all()
    )
    assert found.scores[0] >= single.scores[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_a_training_step_on_a_gpu(dtype):
    from mmcv.ops import get_compiling_cuda_version

    if get_compiling_cuda_version() == 'not available':
        pytest.skip('mmcv was compiled without CUDA')
    model = build(load(NANO)).train()
    expected = loss_of(model)
    model.cuda()
    torch.manual_seed(0)
    with torch.autocast('cuda', dtype=dtype, enabled=dtype != torch.float32):
        loss = loss_of(model)
    loss.backward()
    assert loss.isfinite() and expected.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())
