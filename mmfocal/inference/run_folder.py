# SPDX-License-Identifier: Apache-2.0
"""Find the config and the checkpoint of a training run."""

from pathlib import Path
from zipfile import is_zipfile

from mmfocal.zoo import find_config


def find_run(config_or_run: str | Path, checkpoint: str | Path | None = None) -> tuple[str, str]:
    """Return the config and the checkpoint for prediction.

    Args:
        config_or_run: Folder of a run (its ``--work-dir``), config file, or name of a shipped
            config.
        checkpoint: Checkpoint file. The default of a run is its newest ``best_*.pth``, or else its
            latest checkpoint.

    Returns:
        Paths of the config and of the checkpoint.

    Raises:
        FileNotFoundError: If there is no such config, or if the folder lacks one of the two.
        ValueError: If a config is given without a checkpoint.
    """
    if not Path(config_or_run).is_dir():
        path = find_config(config_or_run)
        if checkpoint is None:
            raise ValueError(
                f'{config_or_run} is a config and needs a checkpoint as the next argument; '
                "a run's folder contains both"
            )
        return path, str(checkpoint)
    run = Path(config_or_run)
    configs = sorted(run.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise FileNotFoundError(f'{run} holds no config (*.py), so it is not the folder of a run')
    return str(configs[-1]), str(checkpoint or _best(run))


def _best(run: Path) -> str:
    """Return the newest best checkpoint, or the latest; it may contain weights only."""
    for patterns in (['best_*.pth'], ['iter_*.pth', 'epoch_*.pth']):
        found = [path for pattern in patterns for path in run.glob(pattern) if is_zipfile(path)]
        if found:
            return str(max(found, key=lambda path: path.stat().st_mtime))
    raise FileNotFoundError(f'{run} holds no complete checkpoint (best_, iter_ or epoch_*.pth)')
