# SPDX-License-Identifier: Apache-2.0
"""Configs for GPUs on machines without one."""

import copy
import socket

import pytest
import torch.distributed as dist
from mmengine.config import Config

from mmfocal.engine import adapt_to_machine, machine

GPU_CONFIG = dict(
    model=dict(
        head=dict(norm_cfg=dict(type='SyncBN', requires_grad=True)),
        convs=[dict(norm_cfg=dict(type='SyncBN'))],
        neck=dict(norm_cfg=dict(type='GN', num_groups=8)),
    ),
    optim_wrapper=dict(
        type='AmpOptimWrapper',
        loss_scale='dynamic',
        dtype='bfloat16',
        optimizer=dict(type='AdamW'),
    ),
    test_cfg=dict(type='TestLoop', fp16=True),
    launcher='none',
)


@pytest.fixture
def cfg() -> Config:
    return Config(copy.deepcopy(GPU_CONFIG))


def test_cpu_gets_fp32_and_bn_and_one_line_each(cfg, monkeypatch, capsys):
    monkeypatch.setattr(machine, 'get_device', lambda: 'cpu')
    adapt_to_machine(cfg)
    assert cfg.optim_wrapper == dict(type='OptimWrapper', optimizer=dict(type='AdamW'))
    assert cfg.test_cfg == dict(type='TestLoop')
    assert cfg.model.head.norm_cfg == dict(type='BN', requires_grad=True)
    assert cfg.model.convs[0].norm_cfg.type == 'BN'
    assert cfg.model.neck.norm_cfg.type == 'GN'
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and 'AMP' in lines[0] and 'SyncBN' in lines[1]
    adapt_to_machine(cfg)
    assert capsys.readouterr().out == ''  # nothing left to say


def test_gpu_changes_nothing(cfg, monkeypatch, capsys):
    monkeypatch.setattr(machine, 'get_device', lambda: 'cuda')
    cfg.launcher = 'pytorch'
    before = copy.deepcopy(cfg.to_dict())
    adapt_to_machine(cfg)
    assert cfg.to_dict() == before
    assert capsys.readouterr().out == '' and not dist.is_initialized()


@pytest.fixture
def free_port() -> str:
    with socket.create_server(('127.0.0.1', 0)) as server:
        return str(server.getsockname()[1])


@pytest.mark.parametrize(
    'variables',
    [
        dict(launcher='pytorch', RANK='0', WORLD_SIZE='1', LOCAL_RANK='0'),
        dict(launcher='slurm', SLURM_PROCID='0', SLURM_NTASKS='1', SLURM_LOCALID='0'),
        dict(
            launcher='mpi',
            OMPI_COMM_WORLD_RANK='0',
            OMPI_COMM_WORLD_SIZE='1',
            OMPI_COMM_WORLD_LOCAL_RANK='0',
        ),
    ],
    ids=lambda variables: variables['launcher'],
)
def test_launchers_start_gloo_without_device_ids(cfg, monkeypatch, variables, free_port):
    monkeypatch.setattr(machine, 'get_device', lambda: 'cpu')
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.setenv(name, '7')  # restored afterwards; slurm and mpi overwrite it
    address = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port)
    for name, value in {**address, **variables}.items():
        monkeypatch.setenv(name, value)
    cfg.launcher = variables['launcher']
    cfg.find_unused_parameters = True
    try:
        adapt_to_machine(cfg)
        assert dist.get_backend() == 'gloo' and dist.get_world_size() == 1
    finally:
        dist.destroy_process_group()
    assert cfg.model_wrapper_cfg.device_ids is None
    assert cfg.model_wrapper_cfg.find_unused_parameters is True


def test_a_model_wrapper_of_the_config_stays(cfg, monkeypatch, free_port):
    monkeypatch.setattr(machine, 'get_device', lambda: 'cpu')
    variables = dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1')
    for name, value in dict(variables, MASTER_PORT=free_port).items():
        monkeypatch.setenv(name, value)
    cfg.launcher = 'pytorch'
    mine = dict(type='MMDistributedDataParallel', static_graph=True, broadcast_buffers=True)
    cfg.model_wrapper_cfg = mine
    try:
        adapt_to_machine(cfg)
    finally:
        dist.destroy_process_group()
    assert cfg.model_wrapper_cfg == dict(mine, device_ids=None)
