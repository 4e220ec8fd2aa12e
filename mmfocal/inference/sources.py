# SPDX-License-Identifier: Apache-2.0
"""Input of predictions: images, folders, patterns, URLs, videos and cameras."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path, PurePosixPath

import cv2
import mmcv
import numpy as np
import supervision as sv
from mmengine import fileio

from mmfocal.image_files import IMAGES, is_hidden

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv', '.gif')


class UnreadableError(ValueError):
    """Raised for an input whose content cannot be read."""


def read_image(path: str | Path) -> np.ndarray:
    """Read an image.

    Args:
        path: File or URL.

    Returns:
        BGR image ``(H, W, 3)``, uint8.

    Raises:
        UnreadableError: If the file is missing or not an image.
    """
    try:
        content = fileio.get(str(path))
        image = mmcv.imfrombytes(content) if content else None
    except (OSError, cv2.error) as error:
        raise UnreadableError(f'{path}: {error}') from error
    if image is None:
        raise UnreadableError(f'{path}: not an image that OpenCV can read')
    return image


@dataclass(frozen=True)
class Source:
    """One image, one video or one camera.

    Attributes:
        name: Unique name for its results, without suffix; includes subfolders.
        path: File, URL, or the camera's number.
        kind: ``'image'``, ``'video'`` or ``'camera'``.
    """

    name: str
    path: str
    kind: str

    def frames(self) -> Iterator[np.ndarray]:
        """Read the image, or the frames of a video one by one.

        Yields:
            BGR images ``(H, W, 3)``, uint8; endless for a camera.

        Raises:
            UnreadableError: If it cannot be read.
        """
        if self.kind == 'image':
            yield read_image(self.path)
        elif self.kind == 'video':
            self._video()
            yield from sv.get_video_frames_generator(self.path)
        else:
            yield from self._camera_frames()

    def frame_rate(self) -> float:
        """Return the frames per second of a video; 25 if unknown."""
        rate = self._video().fps if self.kind == 'video' else 0
        return rate or 25.0

    def length(self) -> int | None:
        """Return the number of frames; None if unknown, as for a camera or an unreadable video."""
        if self.kind != 'video':
            return 1 if self.kind == 'image' else None
        with suppress(UnreadableError):
            return max(self._video().total_frames or 0, 0) or None
        return None

    def _video(self) -> sv.VideoInfo:
        try:
            info = sv.VideoInfo.from_video_path(self.path)
        except Exception as error:  # supervision raises this class itself
            raise UnreadableError(f'{self.path}: not a video that OpenCV can read') from error
        if not info.width:
            raise UnreadableError(f'{self.path}: not a video that OpenCV can read')
        return info

    def _camera_frames(self) -> Iterator[np.ndarray]:
        camera = cv2.VideoCapture(int(self.path))
        try:
            if not camera.isOpened():
                raise UnreadableError(f'camera {self.path} cannot be opened')
            while True:
                is_read, frame = camera.read()
                if not is_read:
                    return
                yield frame
        finally:
            camera.release()


def find_sources(inputs: Iterable[str | Path]) -> list[Source]:
    """Find the images and videos of a command line.

    Args:
        inputs: Images, videos, folders (searched with their subfolders, without hidden names;
            other files in it are skipped, also those of a pattern), patterns such as
            ``'scans/*.png'``, URLs of images, and numbers of cameras.

    Returns:
        Sources in the order of the inputs, those of a folder or pattern sorted.

    Raises:
        FileNotFoundError: If an input does not exist, or if a folder has no image and no video.
        ValueError: If a file is neither an image nor a video.
    """
    sources: list[Source] = []
    names = _Names()
    for entry in map(str, inputs):
        for path, name in _expand(entry):
            kind = _kind(path)
            sources.append(Source(names.unused(name, kind), path, kind))
    return sources


def without_query(path: str) -> str:
    """Remove the query of a URL; local names may contain ``?`` and ``#``.

    Args:
        path: File or URL.
    """
    return path.partition('?')[0].partition('#')[0] if '://' in path else path


def _expand(entry: str) -> list[tuple[str, str]]:
    """Return the files of an input and the names of their results."""
    path = Path(entry)
    if path.is_dir():
        known = (file for file in path.rglob('*') if _is_shown(file.relative_to(path)))
        files = sorted(file for file in known if not file.is_dir())
        if not files:
            raise FileNotFoundError(f'{entry} holds no image and no video')
        return [(str(file), file.relative_to(path).as_posix()) for file in files]
    if path.exists():
        return [(entry, path.name)]
    if '://' in entry:
        return [(entry, Path(without_query(entry)).name)]
    if entry.isdecimal():
        return [(entry, f'camera{entry}')]
    found = sorted(glob(entry, recursive=True)) if has_magic(entry) else []
    found = [file for file in found if Path(file).suffix.lower() in IMAGES + VIDEOS]
    if not found:
        raise FileNotFoundError(
            f'{entry} does not exist; expected an image, a video, a folder, a pattern or the '
            'number of a camera'
        )
    return [(file, Path(file).name) for file in found if Path(file).is_file()]


def _is_shown(path: Path) -> bool:
    """Return whether a path in a folder is an image or a video, and no part of it is hidden."""
    return path.suffix.lower() in IMAGES + VIDEOS and not is_hidden(path)


def _kind(path: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix in IMAGES or '://' in path:
        return 'image'
    if suffix in VIDEOS:
        return 'video'
    if path.isdecimal():
        return 'camera'
    known = ' '.join(IMAGES + VIDEOS)
    raise ValueError(f'{path} is neither an image nor a video; expected a suffix of {known}')


class _Names:
    """Names of results that do not replace each other.

    The results of a video's or a camera's frames are in a folder of its name, so no other name is
    in there.
    """

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.folders: set[str] = set()  # that hold used names
        self.frames: set[str] = set()  # folders of frames

    def unused(self, name: str, kind: str) -> str:
        """Remove the suffix; keep it, join the folders or add a number if the name is used.

        Args:
            name: File name with subfolders.
            kind: Kind of the source.

        Returns:
            The name, which is used from now on.
        """
        path = PurePosixPath(name)
        stem = path.with_suffix('').as_posix()
        flat = stem.replace('/', '_')
        choices = [stem, path.as_posix().replace('.', '_'), flat]
        choices += [f'{flat}_{number}' for number in range(2, len(self.used) + 4)]
        choice = next(choice for choice in choices if self._is_free(choice, kind))
        self.used.add(choice)
        self.folders.update(map(str, PurePosixPath(choice).parents))
        if kind != 'image':
            self.frames.add(choice)
        return choice

    def _is_free(self, choice: str, kind: str) -> bool:
        folders = set(map(str, PurePosixPath(choice).parents))
        is_taken = choice in self.used or (kind != 'image' and choice in self.folders)
        return not is_taken and not folders & self.frames
