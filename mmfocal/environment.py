# SPDX-License-Identifier: Apache-2.0
"""Incompatible installed packages, each with the command that fixes it.

This module reads pip's records and does not import the packages, because imports may fail.
"""

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

# Distributions by import name. Distributions in one row overwrite each other's files.
DISTRIBUTIONS = {
    'mmengine': ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
}
ONEDL = 'onedl-'  # prefix of the maintained family
BUILD_MMCV = (
    'pip install "setuptools<81" wheel ninja && '
    'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall'
)


def installed(name: str) -> str | None:
    """Return the version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _number(text: str | None) -> tuple[int, ...]:
    """Return the first two numbers of a version; ``()``, below any version, if there is none."""
    return tuple(int(part) for part in re.findall(r'\d+', text or '')[:2])


def _providers(module: str) -> list[str]:
    return [name for name in DISTRIBUTIONS[module] if installed(name)]


def _is_onedl() -> bool:
    return installed('onedl-mmengine') is not None


def _original_mmengine() -> str | None:
    """Return the name of OpenMMLab's own MMEngine, if it is installed."""
    return next((n for n in _providers('mmengine') if not n.startswith(ONEDL)), None)


def _mmcv_requirement(is_onedl: bool) -> str:
    return '"onedl-mmcv>=2.3,<2.4"' if is_onedl else 'mmcv==2.1.0'


def has_operators() -> bool:
    """Return whether mmcv has a compiled extension, possibly for another torch."""
    spec = find_spec('mmcv')
    folders = (spec and spec.submodule_search_locations) or []
    return any(path.suffix in ('.so', '.pyd') for f in folders for path in Path(f).glob('_ext*'))


def _listed(packages: dict[str, str]) -> str:
    return ', '.join(f'{name} {installed(name)}' for name in packages.values())


def _double_packages() -> Iterator[str]:
    for module in DISTRIBUTIONS:
        names = _providers(module)
        if len(names) > 1:
            found = ' and '.join(f'{name} {installed(name)}' for name in names)
            kept = next((name for name in names if name.startswith(ONEDL)), names[0])
            yield (
                f'{found} are both installed and overwrite each other as `{module}`: '
                f'pip uninstall -y {" ".join(names)}, then install one of them, such as {kept}'
            )


def _mixed_families() -> Iterator[str]:
    """Compare the families of different modules. The family of MMEngine is kept."""
    single = {m: names[0] for m in DISTRIBUTIONS if len(names := _providers(m)) == 1}
    onedl = {m: name for m, name in single.items() if name.startswith(ONEDL)}
    original = {m: name for m, name in single.items() if m not in onedl}
    if not (onedl and original):
        return
    keeps_onedl = 'mmengine' not in original
    wrong = original if keeps_onedl else onedl
    commands = [f'pip uninstall -y {" ".join(wrong.values())}']
    replaced = [DISTRIBUTIONS[m][-1 if keeps_onedl else 0] for m in wrong if m != 'mmcv']
    if replaced:
        commands.append(f'pip install {" ".join(replaced)}')
    if 'mmcv' in wrong:
        commands.append(f'{BUILD_MMCV} {_mmcv_requirement(keeps_onedl)}')
    yield (
        f'packages of OpenMMLab ({_listed(original)}) and their forks ({_listed(onedl)}) '
        f'are mixed: {" && ".join(commands)}'
    )


def _mmcv_without_operators() -> Iterator[str]:
    hosts = [name for module in ('mmdet', 'mmseg') for name in _providers(module)]
    if hosts and not has_operators():
        there = ', '.join(f'{name} {installed(name)}' for name in _providers('mmcv'))
        remove = ' '.join(name for name in _providers('mmcv') if name == 'mmcv-lite')
        yield (
            f'{" and ".join(hosts)} need mmcv with compiled operators, found '
            f'{f"{there} without them" if there else "no mmcv"}: '
            f'{f"pip uninstall -y {remove} && " if remove else ""}{BUILD_MMCV} '
            f'{_mmcv_requirement(_is_onedl())}'
        )


def _numpy_too_new() -> Iterator[str]:
    numpy, torch, mmcv = installed('numpy'), installed('torch'), installed('mmcv')
    if _number(numpy) < (2,):
        return
    if torch and _number(torch) < (2, 3):
        yield f'torch {torch} is compiled for numpy 1, found numpy {numpy}: pip install "numpy<2"'
    elif mmcv and _number(mmcv) < (2, 2):
        yield f'mmcv {mmcv} is made for numpy 1, found numpy {numpy}: pip install "numpy<2"'


def _torch_too_new() -> Iterator[str]:
    torch, mmengine = installed('torch'), _original_mmengine()
    if mmengine and _number(torch) >= (2, 6):
        yield (
            f'{mmengine} {installed(mmengine)} cannot read its checkpoints with torch {torch}: '
            'pip install "torch<2.6" with the torchvision of that release, or switch to '
            "onedl's packages, which continue the original ones"
        )


def _setuptools_too_new() -> Iterator[str]:
    if _original_mmengine() and find_spec('pkg_resources') is None:
        yield (
            'the original mmengine imports pkg_resources to find the configs of hosts, which '
            'setuptools 82 no longer has: pip install "setuptools<81"'
        )


def _opencv_missing() -> Iterator[str]:
    if find_spec('cv2') is None:
        yield (
            "MMEngine's hooks import opencv, which is not installed: "
            'pip install opencv-python-headless'
        )


def problems() -> list[str]:
    """Return incompatibilities, one sentence each, with the command that fixes it."""
    checks = (
        *(_double_packages, _mixed_families, _mmcv_without_operators, _numpy_too_new),
        *(_torch_too_new, _setuptools_too_new, _opencv_missing),
    )
    return [problem for check in checks for problem in check()]


def _from_error(error: Exception) -> list[str]:
    """Diagnose an error by its text: pip's records do not show which torch mmcv was built for."""
    if '_ext' in str(error) and 'symbol' in str(error):
        return [
            f"mmcv's operators are compiled for another torch: {BUILD_MMCV} "
            f'{_mmcv_requirement(_is_onedl())}'
        ]
    if isinstance(error, ModuleNotFoundError) and error.name == 'supervision':
        return ['supervision, which draws predictions, is not installed: pip install supervision']
    return []


def require(*modules: str) -> None:
    """Import modules and explain a failure by incompatible packages.

    Raises:
        ImportError: If the cause of a failure is known; chained to the original error.
    """
    try:
        for module in modules:
            import_module(module)
    except Exception as error:  # e.g. a missing file, a removed NumPy name, an assertion of a host
        reasons = _from_error(error) + problems()
        if not reasons:
            raise
        text = '\n'.join(f'  - {reason}' for reason in reasons)
        raise ImportError(
            f'{type(error).__name__}: {error}\nPackages installed for {sys.executable} are '
            f'incompatible:\n{text}'
        ) from error
