# SPDX-License-Identifier: Apache-2.0
"""Report a total batch that differs from the one the learning rate was chosen for."""

from mmengine.config import Config


def describe_batch_size(cfg: Config, processes: int) -> str | None:
    """Compare the total batch with ``auto_scale_lr.base_batch_size``.

    Args:
        cfg: Complete training config.
        processes: Number of processes, which is the number of GPUs.

    Returns:
        One line with the configured and the scaled learning rate and which of them is used. None
        if the batches agree, or if the config has no base batch size.
    """
    scaling = cfg.get('auto_scale_lr') or {}
    base = scaling.get('base_batch_size')
    images = (cfg.get('train_dataloader') or {}).get('batch_size')
    wrapper = cfg.get('optim_wrapper') or {}
    lr = (wrapper.get('optimizer') or {}).get('lr')
    if None in (base, images, lr):
        return None
    steps = wrapper.get('accumulative_counts', 1)
    if processes * images * steps == base:
        return None
    enabled = scaling.get('enable', False)
    # MMEngine ignores gradient accumulation when it scales
    scaled = lr * processes * images * (1 if enabled else steps) / base
    accumulated = f' x {steps} accumulated' if steps > 1 else ''
    batch = f'{processes * images * steps} ({processes} x {images}{accumulated})'
    chosen = (
        f'--auto-scale-lr is given: {scaled:.3g} instead of {lr:.3g}'
        if enabled
        else f'--auto-scale-lr is not given: {lr:.3g} as configured instead of {scaled:.3g}'
    )
    return f'The total batch is {batch}; the learning rate is set for {base}. {chosen}.'
