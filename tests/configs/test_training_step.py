# SPDX-License-Identifier: Apache-2.0
"""Every config trains and predicts: a gradient for each parameter, in one process and in two."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmfocal.engine import adapt_to_machine, machine
from mmfocal.engine.machine import dicts_in
from mmfocal.engine.randomness import seed_all
from tests.helpers.config_suite import CONFIGS, SMALL, build, has_masks, load
from tests.helpers.processes import run_in_processes

SIZE = (128, 160)
CLASSIFIER_SIZE = (224, 224)  # which Swin's windows need
BOXES = 10  # kept of each image
METHODS = [name for name in SMALL if name.startswith('quickstart/focal') and 'jitter' not in name]
_passed: set[str] = set()  # models and optimizers that made their step


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, 'get_device', lambda: 'cpu')


def small_task(name: str) -> Config:
    """Return a config without pretrained weights, for few small images and few regions."""
    cfg = load(name)
    adapt_to_machine(cfg)
    cfg.model.backbone.init_cfg = None
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = SIZE
    if cfg.default_scope == 'mmdet':
        for node in dicts_in(cfg.model):
            if node.get('type') == 'RandomSampler':
                node.num = 32
        test_cfg = cfg.model.test_cfg.get('rcnn') or cfg.model.test_cfg
        test_cfg.update(max_per_img=BOXES, score_thr=0.0)  # untrained models have low scores
        if cfg.model.test_cfg.get('rpn'):
            cfg.model.test_cfg.rpn.update(max_per_img=30)
    return cfg


def make_batch(cfg: Config) -> dict:
    """Return a batch of two random images, as a data loader of the task returns it."""
    if cfg.default_scope == 'mmdet':
        return demo_mm_inputs(
            image_shapes=(3, *SIZE),
            num_items=[4, 3],
            with_mask=True,
            with_semantic='semantic_head' in cfg.model.get('roi_head', {}),
            use_box_type=True,
        )
    if cfg.default_scope == 'mmpretrain':
        samples = [DataSample().set_gt_label(label) for label in (3, 7)]
        shape = CLASSIFIER_SIZE
    else:
        meta, shape = dict(img_shape=SIZE, ori_shape=SIZE), SIZE
        samples = [SegDataSample(metainfo=meta) for _ in range(2)]
        for sample in samples:
            sample.gt_sem_seg = PixelData(data=torch.randint(0, 10, (1, *SIZE)))
    images = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8)
    return dict(inputs=list(images), data_samples=samples)


def make_model(cfg: Config) -> nn.Module:
    model = build(cfg)
    model.init_weights()
    return model


def make_optimizer(
    cfg: Config, model: nn.Module, look: Callable[[nn.Module], None]
) -> OptimWrapper:
    """Return the config's optimizer, which checks the gradients before each step."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    wrapper.optimizer.register_step_pre_hook(lambda *_: look(model))
    return wrapper


def check_gradients(model: nn.Module) -> None:
    """Every parameter takes part in every step, as DDP requires."""
    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    unused = [name for name, param in params.items() if param.grad is None]
    assert not unused, f'{len(unused)} without gradient: {unused[:5]}'
    wrong = [name for name, param in params.items() if not param.grad.isfinite().all()]
    assert not wrong, f'{len(wrong)} without finite gradient: {wrong[:5]}'


def train_and_predict(name: str) -> None:
    cfg = small_task(name)
    parts = repr((cfg.model.to_dict(), cfg.optim_wrapper.to_dict(), cfg.get('data_preprocessor')))
    if parts in _passed:  # configs that differ in schedule or data alone
        return
    model = make_model(cfg).train()
    looked = []
    wrapper = make_optimizer(cfg, model, lambda found: looked.append(check_gradients(found)))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        losses = model.train_step(make_batch(cfg), wrapper)
        model.eval()
        with torch.no_grad():
            predictions = model.test_step(make_batch(cfg))
    assert len(looked) == 1
    assert losses and all(loss.isfinite() for loss in losses.values()), losses
    check_predictions(cfg, predictions)
    _passed.add(parts)


def check_predictions(cfg: Config, predictions: list) -> None:
    assert len(predictions) == 2
    for found in predictions:
        if cfg.default_scope == 'mmpretrain':
            assert found.pred_score.sum() == pytest.approx(1, abs=1e-4)
        elif cfg.default_scope == 'mmseg':
            assert found.pred_sem_seg.data.shape == (1, *SIZE)
            assert found.seg_logits.data.isfinite().all()
        else:
            instances = found.pred_instances
            assert 0 < len(instances) <= BOXES
            assert instances.bboxes.isfinite().all() and instances.scores.isfinite().all()
            if has_masks(cfg):
                assert instances.masks.shape[1:] == SIZE


@pytest.mark.parametrize('name', SMALL)
def test_methods_train_and_predict(name):
    train_and_predict(name)


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in CONFIGS if name not in SMALL])
def test_every_config_trains_and_predicts(name):
    train_and_predict(name)


@pytest.mark.parametrize('method', ['retinanet', 'atss', 'upernet', 'cls'])
def test_half_precision(method):
    """Losses under bfloat16 agree with those of fp32, and parameters stay fp32."""
    cfg = small_task(f'quickstart/focal_nano_{method}')
    model = make_model(cfg).train()
    batch = model.data_preprocessor(make_batch(cfg), training=True)
    totals = []
    for enabled in (False, True):
        model.zero_grad()
        torch.manual_seed(1)  # dropout
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            total, _ = model.parse_losses(model(**batch, mode='loss'))
        total.backward()
        check_gradients(model)
        totals.append(total.item())
    assert totals[1] != totals[0]
    assert totals[1] == pytest.approx(totals[0], rel=0.03)


def _equal_on_all_ranks(model: nn.Module) -> None:
    """Gradients are averages over the processes."""
    check_gradients(model)
    for name, param in model.named_parameters():
        other = param.grad.clone()
        dist.broadcast(other, src=1)
        assert param.grad.equal(other), f'{name}: gradients differ between the processes'


def _gradients(model: MMDistributedDataParallel, batch: dict, rank: int) -> dict[str, Tensor]:
    """Of a step with this rank's own random numbers, before clipping."""
    model.zero_grad()
    seed_all(rank)  # dropout, sampled regions
    data = model.module.data_preprocessor(batch, training=True)
    total, _ = model.module.parse_losses(model(**data, mode='loss'))
    total.backward()
    check_gradients(model)
    return {name: param.grad.clone() for name, param in model.named_parameters()}


def _check_mean(name: str, model: MMDistributedDataParallel, batch: dict, rank: int) -> None:
    """Gradients are the mean of those that each process computes alone.

    Losses are not in general those of one process with all images: detectors divide by the number
    of positive samples of each process, and batch norm is local on CPUs.
    """
    with model.no_sync():
        alone = _gradients(model, batch, rank)
    together = _gradients(model, batch, rank)
    for key, value in alone.items():
        total = value.clone()
        dist.all_reduce(total)
        assert not total.norm() or not value.equal(total / 2), f'{name} {key}: the ranks agree'
        # halving is exact, and a sum of two numbers is rounded once
        error = (together[key] - total / 2).norm()
        assert error <= torch.finfo(torch.float32).eps * total.norm(), f'{name} {key}'


def _train_together(rank: int, names: list[str]) -> None:
    """Run two steps of each method; DDP fails in the second step if a parameter was unused."""
    machine.get_device = lambda: 'cpu'
    for name in names:
        cfg = small_task(name)
        torch.manual_seed(0)
        model = MMDistributedDataParallel(make_model(cfg).train(), broadcast_buffers=False)
        wrapper = make_optimizer(cfg, model, _equal_on_all_ranks)
        torch.manual_seed(rank)
        for step in range(2):
            batch = make_batch(cfg)
            batch['inputs'] = [image.roll(40 * rank, 1) for image in batch['inputs']]
            if step == 0:
                assert not model.find_unused_parameters
                _check_mean(name, model, batch, rank)
            with DefaultScope.overwrite_default_scope(cfg.default_scope):
                losses = model.train_step(batch, wrapper)
            both = [torch.zeros(()) for _ in range(2)]
            dist.all_gather(both, losses['loss'].detach())
            assert both[0] != both[1], f'{name}: both processes saw the same images'


@pytest.mark.slow
def test_two_processes_use_every_parameter(tmp_path: Path):
    """DDP runs without ``find_unused_parameters``."""
    run_in_processes(_train_together, tmp_path, METHODS)
