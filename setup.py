# SPDX-License-Identifier: Apache-2.0
"""Settings that pyproject.toml cannot express: version, extras, ``mmfocal/.mim``.

``pip install .`` or ``pip install -e '.[all]'``.
"""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_ENTRIES = ('configs', 'tools', 'model-index.yml')
# Tools that need a checkout: set-up, tests, quickstart, and generators of the project's pages.
NOT_IN_MIM = ('setup_env.sh', 'run_tests.sh', 'quickstart.sh', 'dev')


def read_version() -> str:
    """Read the version from ``mmfocal/version.py`` without importing torch."""
    source = (ROOT / 'mmfocal' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '(.+)'$", source, re.MULTILINE).group(1)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class BuildWithMim(build_py):
    """Put configs and tools where ``mmengine`` looks for them: ``mmfocal/.mim``.

    A wheel gets copies, made in the build folder. An editable install gets links in the source
    tree (ignored by git), so that edited configs take effect at once.
    """

    def run(self) -> None:
        built = Path(self.build_lib) / 'mmfocal'
        remove(built)  # modules of an earlier version would get into the wheel
        super().run()
        mim = (ROOT / 'mmfocal' if self.editable_mode else built) / '.mim'
        remove(mim)
        mim.mkdir()
        for entry in MIM_ENTRIES:
            if (ROOT / entry).exists():
                self._place(ROOT / entry, mim / entry)

    def _place(self, source: Path, target: Path) -> None:
        if self.editable_mode and os.name != 'nt':  # links need extra rights on Windows
            target.symlink_to(os.path.relpath(source, target.parent))
        elif source.is_dir():
            left_out = shutil.ignore_patterns('__pycache__', *NOT_IN_MIM)
            shutil.copytree(source, target, ignore=left_out)
        else:
            shutil.copy2(source, target)


# Maintained forks of OpenMMLab's libraries. The core requires none of them: they share
# their import names with the original mm* packages, and a second mmengine or mmcv would overwrite
# the one that a user has installed. mmcv's ops are compiled only if torch is installed first and
# with `--no-build-isolation`; tools/setup_env.sh does that.
COMMON = [
    'onedl-mmengine>=0.10.8,<0.11',
    'onedl-mmcv>=2.3,<2.4',
    'pycocotools>=2.0.6',  # COCO's metric, and the masks of the digit scenes of all three tasks
    'scikit-learn>=1.3',
    'safetensors>=0.4',  # the format of timm's and the Hugging Face Hub's weights
    'shtab>=1.7',  # completion of `mmfocal` in shells
    'supervision>=0.31',  # draws predictions and reads videos; does not require an OpenCV package
]
EXTRAS = {
    'det': [*COMMON, 'onedl-mmdetection>=3.5,<3.6', 'msgspec>=0.18'],  # msgspec parses JSON fast
    'seg': [*COMMON, 'onedl-mmsegmentation>=1.4,<1.5'],
    'cls': [*COMMON, 'onedl-mmpretrain>=1.3,<1.4'],
}
EXTRAS['vis'] = ['grad-cam>=1.5', 'matplotlib']
EXTRAS['all'] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})
# MMEngine logs to a folder unless a server is given, which MLflow 3 no longer supports
EXTRAS['track'] = ['mlflow>=2,<3', 'tensorboard>=2', 'wandb>=0.16']
EXTRAS['labels'] = ['datumaro>=1.6']  # annotations of CVAT
EXTRAS['dev'] = [
    *(
        'hypothesis>=6.100',
        'mypy==2.4.1',
        'pre-commit>=3',
        'pytest>=7.2',
        'pytest-timeout>=2.2',
        'pytest-xdist>=3',
        'ruff>=0.9',
    ),
    *('sybil>=6', 'timm>=1'),
]

setup(
    version=read_version(),
    packages=find_packages(include=['mmfocal', 'mmfocal.*']),
    package_data={'mmfocal': ['py.typed']},
    # the releases that tools/dev/test_matrix.sh tests; torch has no upper bound
    install_requires=['numpy>=1.26,<3', 'torch>=2.1.2'],
    extras_require=EXTRAS,
    entry_points={'console_scripts': ['mmfocal = mmfocal.cli:main']},
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
