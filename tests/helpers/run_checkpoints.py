# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints as trainings write them, and damaged ones."""

import os
from pathlib import Path

import torch


def training_checkpoint(path: Path, age: int = 0, iterations: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = dict(seed=7, iter=iterations)
    content = dict(meta=meta, state_dict=dict(w=torch.zeros(1000)), message_hub={})
    torch.save(content, path)
    os.utime(path, (1000 - age, 1000 - age))
    return path


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    middle = content.index(bytes(2000)) + 500
    kept = dict(
        truncated=content[:-100],
        empty=b'',
        rotten=content[:middle] + b'rot' + content[middle + 3 :],
        text=b'not found',
    )
    path.write_bytes(kept[kind])
