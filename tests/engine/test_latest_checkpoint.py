# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a training goes on from."""

import os

import torch

from mmfocal.engine import latest_checkpoint


def test_newest_complete_checkpoint_wins(tmp_path):
    for age, name in enumerate(['iter_300.pth', 'iter_200.pth', 'iter_100.pth', 'best_mAP.pth']):
        torch.save(torch.zeros(1000), tmp_path / name)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert latest_checkpoint(tmp_path) == str(tmp_path / 'iter_300.pth')
    whole = (tmp_path / 'iter_300.pth').read_bytes()
    (tmp_path / 'iter_300.pth').write_bytes(whole[:-100])
    (tmp_path / 'iter_200.pth').write_bytes(b'')
    assert latest_checkpoint(tmp_path) == str(tmp_path / 'iter_100.pth')


def test_nothing_to_go_on_from(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / 'absent') is None
