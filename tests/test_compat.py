# SPDX-License-Identifier: Apache-2.0
"""Private methods of hosts are checked, and an error names the installed release."""

import sys
from importlib import import_module

import mmengine
import pytest

from mmfocal.compat import check_base, import_strategies


@pytest.mark.parametrize(
    ('module', 'name', 'method'),
    [
        ('mmengine.hooks', 'CheckpointHook', '_save_checkpoint_with_step'),
        ('mmdet.models', 'HybridTaskCascadeRoIHead', '_mask_forward'),
        ('mmdet.models', 'RepPointsHead', '_bbox_decode'),
    ],
)
def test_missing_method_of_a_base_is_an_error(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, method: str
) -> None:
    host = pytest.importorskip(module.split('.')[0])
    base = getattr(import_module(module), name)
    check_base(base)
    for owner in base.__mro__:
        if method in vars(owner):
            monkeypatch.delattr(owner, method)
    expected = rf'^{name} of {host.__name__} {host.__version__} has no {method}; mmfocal supports'
    with pytest.raises(AttributeError, match=expected):
        check_base(base)


def test_missing_strategies_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    check_base(import_strategies()[0])
    monkeypatch.setitem(sys.modules, 'mmengine._strategy', None)
    with pytest.raises(ImportError, match=f'mmengine {mmengine.__version__} has no .*_strategy'):
        import_strategies()
