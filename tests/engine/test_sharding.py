# SPDX-License-Identifier: Apache-2.0
"""Folders with a file per rank; several processes are in tests/tools/test_scale_out.py."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import Tensor

from mmfocal.engine import check_checkpoint, latest_checkpoint
from mmfocal.engine.resume import resume
from mmfocal.engine.sharding import read_sharded
from mmfocal.errors import InputError

WEIGHT = torch.arange(10.0).reshape(5, 2)


def save_ranks(folder: Path, ranks: int = 2) -> Path:
    """Save what ``FullyShardStrategy`` saves of two tensors and a step."""
    folder.mkdir(parents=True)

    def part(rank: int) -> dict[str, Tensor]:
        chunks = WEIGHT.chunk(ranks)
        return dict(shard=chunks[rank] if rank < len(chunks) else WEIGHT[:0])

    for rank in range(ranks):
        state = dict(weight=part(rank), buffer=torch.ones(2))
        optimizer = dict(
            state={0: dict(exp_avg=part(rank), step=torch.tensor(3.0))}, param_groups=[dict(lr=1)]
        )
        content = dict(meta=dict(ranks=ranks, seed=5), state_dict=state, optimizer=optimizer)
        torch.save(dict(content, message_hub={}), folder / f'rank{rank}.pth')
    return folder


@pytest.mark.parametrize('ranks', [1, 2, 4])  # the fourth of four has no row of five
def test_parts_are_joined(tmp_path, ranks):
    found = read_sharded(save_ranks(tmp_path / 'iter_2.pth', ranks))
    assert torch.equal(found['state_dict']['weight'], WEIGHT)
    assert torch.equal(found['state_dict']['buffer'], torch.ones(2))
    assert torch.equal(found['optimizer']['state'][0]['exp_avg'], WEIGHT)
    assert found['optimizer']['state'][0]['step'] == 3
    assert found['optimizer']['param_groups'] == [dict(lr=1)]


def test_a_missing_rank_is_named(tmp_path):
    folder = save_ranks(tmp_path / 'iter_2.pth')
    (folder / 'rank1.pth').unlink()
    with pytest.raises(InputError, match=r'iter_2\.pth is incomplete: rank1\.pth is missing'):
        read_sharded(folder)
    (folder / 'rank0.pth').unlink()
    with pytest.raises(InputError, match=r'no rank0\.pth; expected a sharded checkpoint'):
        read_sharded(folder)


def test_the_newest_sound_folder_is_resumed(tmp_path, capsys):
    save_ranks(tmp_path / 'iter_2.pth')
    newest = save_ranks(tmp_path / 'iter_4.pth')
    check_checkpoint(str(newest))
    (newest / 'rank1.pth').write_bytes((newest / 'rank1.pth').read_bytes()[:-50])
    assert latest_checkpoint(tmp_path) == str(tmp_path / 'iter_2.pth')
    assert 'rank1.pth is incomplete' in capsys.readouterr().out
    cfg = Config(dict(work_dir=str(tmp_path)))
    resume(cfg, 'auto')
    assert cfg.load_from == str(tmp_path / 'iter_2.pth') and cfg.randomness.seed == 5
