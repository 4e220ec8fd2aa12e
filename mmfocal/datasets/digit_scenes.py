# SPDX-License-Identifier: Apache-2.0
"""Digit scenes: a data set that is generated locally from real handwriting.

The 1,797 scans of handwritten digits that scikit-learn carries (8 x 8, 17 gray levels) are laid
out as scenes: several digits of random size, position and color on textured ground, where later
digits partly cover earlier ones. A seed determines everything; no scan is used in both splits.
:func:`build` writes one folder that serves every kind of task::

    annotations/instances_{train,val}.json    COCO: boxes, polygons and RLE, categories 1..10
    {train,val}/000000.png                    images
    annotations/{train,val}/000000.png        ADE20K style labels: 0 = ground, else the category id
    stuffthingmaps/{train,val}/000000.png     for HTC's semantic branch: 0..9 = digits, 10 = ground
    classification/{train,val}/zero/0000_0.png  single digits, named after scan and view
    meta.json                                 the parameters; written last

Shapes: H, W (height and width of an image in pixels), h, w (of one digit), N (digits of a scene),
M (scans).
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from .digits import (
    CLASSES,
    SPLITS,
    Scans,
    ink_box,
    load_scans,
    paint_digit,
    render_crop,
    render_digit,
    render_ground,
)

FORMAT_VERSION = 3  # increased whenever the same parameters yield different files
GROUND = len(CLASSES)  # index of the ground in stuff maps
MIN_VISIBLE = 0.55  # minimum share of a digit's ink that stays visible
COVER_RATE = 0.28  # share of digits placed near or on an earlier one; the others lie anywhere
_LAYOUT = {
    'annotations',
    *SPLITS,
    'stuffthingmaps',
    'classification',
    'meta.json',
    'contact_sheet.png',
}


@dataclass(frozen=True)
class DigitSceneParams:
    """Parameters of a set of digit scenes.

    Attributes:
        train: Number of training scenes.
        val: Number of validation scenes.
        image_size: Height and width of a scene in pixels.
        digits: Minimum and maximum number of digits in a scene.
        digit_size: Minimum and maximum size of a digit in pixels. The size is the longer side of
            the box around its ink before other digits cover it.
        crop_size: Side of the square images of the classification set in pixels.
        crop_views: Images of each training scan in the classification set; validation has one.
        seed: Seed. Scene i of a split depends on the seed, the split, i, and the sizes and numbers
            of digits above, but not on the number of scenes.

    Raises:
        ValueError: A value is out of range or contradicts another; the message names it.
    """

    train: int = 2000
    val: int = 240
    image_size: tuple[int, int] = (160, 160)
    digits: tuple[int, int] = (4, 8)
    digit_size: tuple[int, int] = (20, 56)
    crop_size: int = 64
    crop_views: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in dict(train=1, val=1, crop_size=16, crop_views=1, seed=0).items():
            value = getattr(self, name)
            if not _is_int(value) or value < least:
                raise ValueError(f'{name}={value!r}: expected an integer of at least {least}')
        for name, least in dict(image_size=8, digits=1, digit_size=8).items():
            value = getattr(self, name)
            if (
                not isinstance(value, tuple | list)
                or len(value) != 2
                or not all(_is_int(v) and v >= least for v in value)
            ):
                raise ValueError(f'{name}={value!r}: expected two integers of at least {least}')
        for name in ('digits', 'digit_size'):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f'{name}={(low, high)}: the minimum exceeds the maximum')
        if self.digit_size[1] > min(self.image_size):
            raise ValueError(
                f'digit_size={self.digit_size}: a digit of {self.digit_size[1]} pixels does not '
                f'fit into image_size={self.image_size}'
            )


@dataclass(frozen=True)
class Scene:
    """One scene; digits are in drawing order (the last one is on top).

    Attributes:
        image: (H, W, 3) uint8, RGB.
        masks: (N, H, W) bool, the visible ink of each digit; no two overlap.
        labels: (N,) class indices 0..9.
        scans: (N,) scan ids.
        sizes: (N,) longer side of the uncovered ink box in pixels.
        visible: (N,) share of a digit's ink that is not covered, 0..1.
    """

    image: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    scans: np.ndarray
    sizes: np.ndarray
    visible: np.ndarray


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _propose(
    rng: np.random.Generator,
    shape: tuple[int, int],
    image_size: tuple[int, int],
    boxes: list[tuple[int, int, int, int]],
) -> tuple[int, int]:
    """Propose row and column of a digit: anywhere or near a box (row, column, h, w)."""
    room = np.subtract(image_size, shape)
    if not boxes or rng.random() >= COVER_RATE:
        return tuple(int(v) for v in rng.integers(0, room + 1))
    box = np.array(boxes[rng.integers(len(boxes))])
    offset = rng.uniform(-0.8, 0.8, 2) * (box[2:] + shape) / 2
    corner = box[:2] + box[2:] / 2 + offset - np.array(shape) / 2
    return tuple(int(v) for v in np.clip(np.round(corner), 0, room))


def _arrange(
    rng: np.random.Generator, inks: list[np.ndarray], image_size: tuple[int, int]
) -> tuple[np.ndarray, list[tuple[int, int]]] | None:
    """Place digits so that at least ``MIN_VISIBLE`` of the ink of each stays visible.

    Args:
        rng: Random generator.
        inks: Ink of each digit, (h, w) bool.
        image_size: H and W.

    Returns:
        Visible masks (N, H, W) bool and (row, column) of each upper left corner; None if there is
        not enough room.
    """
    masks = np.zeros((len(inks), *image_size), bool)
    total = np.array([ink.sum() for ink in inks])
    left = total.copy()
    boxes = []
    for index, ink in enumerate(inks):
        for _ in range(60):
            row, column = _propose(rng, ink.shape, image_size, boxes)
            window = masks[:index, row : row + ink.shape[0], column : column + ink.shape[1]]
            remaining = left[:index] - (window & ink).sum((1, 2))
            if (remaining >= MIN_VISIBLE * total[:index]).all():
                break
        else:
            return None
        left[:index] = remaining
        window &= ~ink
        masks[index, row : row + ink.shape[0], column : column + ink.shape[1]] = ink
        boxes.append((row, column, *ink.shape))
    return masks, [box[:2] for box in boxes]


def render_scene(rng: np.random.Generator, scans: Scans, params: DigitSceneParams) -> Scene:
    """Draw one scene.

    Args:
        rng: Random generator; see :func:`scene_rng`.
        scans: Scans to choose from.
        params: Sizes and numbers.

    Raises:
        ValueError: The digits do not fit into an image of this size.
    """
    count = rng.integers(params.digits[0], params.digits[1] + 1)
    picks = rng.integers(len(scans.ids), size=count)
    sizes = rng.integers(params.digit_size[0], params.digit_size[1] + 1, size=count)
    digits = [render_digit(rng, scans.images[pick], int(size)) for pick, size in zip(picks, sizes)]
    inks = [digit >= 0.5 for digit in digits]
    for _ in range(20):
        arranged = _arrange(rng, inks, params.image_size)
        if arranged is not None:
            break
    else:
        raise ValueError(
            f'digits={params.digits}: found no room for {count} digits of digit_size='
            f'{params.digit_size} in image_size={params.image_size}; expected fewer or smaller '
            'digits, or a larger image'
        )
    masks, corners = arranged
    canvas = render_ground(rng, params.image_size)
    for digit, corner in zip(digits, corners):
        paint_digit(rng, canvas, digit, corner)
    image = np.clip(np.round(canvas), 0, 255).astype(np.uint8)
    visible = masks.sum((1, 2)) / [ink.sum() for ink in inks]
    return Scene(image, masks, scans.labels[picks], scans.ids[picks], sizes, visible)


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """Return the generator of scene ``index`` of a split, independent of the number of scenes."""
    return np.random.default_rng((seed, SPLITS.index(split), index))


def mask_to_rle(mask: np.ndarray) -> dict:
    """Return the COCO RLE of an (H, W) bool mask: ``size`` [H, W] and ``counts`` as str."""
    rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {'size': rle['size'], 'counts': rle['counts'].decode('ascii')}


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """Return COCO polygons [x0, y0, x1, y1, ...] of an (H, W) bool mask, one per component.

    The polygons follow the outer edges of pixels, so rasterizing them restores the mask. Holes are
    filled, because polygons cannot express them.
    """
    # Contours run through pixel centers. Contours of a mask enlarged three times lie 1/6 pixel
    # inside the pixels' edges, so rounding to whole pixels gives the edges.
    rows, columns = ink_box(mask)
    fine = cv2.resize(
        mask[rows, columns].astype(np.uint8), None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST
    )
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    corner = columns.start, rows.start
    return [
        np.rint((contour + 0.5) / 3 + corner).astype(int).ravel().tolist() for contour in contours
    ]


def has_holes(mask: np.ndarray) -> bool:
    """Return whether an (H, W) bool mask has holes."""
    outside = np.pad(~mask[ink_box(mask)], 1, constant_values=True).astype(np.uint8)
    return (
        cv2.connectedComponents(outside, connectivity=4)[0] > 2
    )  # the two are the mask and the background


def coco_annotations(scene: Scene, image_id: int, first_id: int) -> list[dict]:
    """Return the COCO annotations of a scene: polygons, or RLE if the visible part has holes.

    In addition to COCO's keys, each has ``scan`` (id of the source scan), ``size`` (longer side of
    the uncovered ink box in pixels) and ``visible`` (share of the ink that is not covered).

    Args:
        scene: The scene.
        image_id: Id of its image.
        first_id: Id of the first annotation; the others follow.
    """
    annotations = []
    for index, mask in enumerate(scene.masks):
        rows, columns = ink_box(mask)
        annotations.append(
            dict(
                id=first_id + index,
                image_id=image_id,
                category_id=int(scene.labels[index]) + 1,
                bbox=[
                    int(columns.start),
                    int(rows.start),
                    int(columns.stop - columns.start),
                    int(rows.stop - rows.start),
                ],
                area=int(mask.sum()),
                iscrowd=0,
                segmentation=mask_to_rle(mask) if has_holes(mask) else mask_to_polygons(mask),
                scan=int(scene.scans[index]),
                size=int(scene.sizes[index]),
                visible=round(float(scene.visible[index]), 4),
            )
        )
    return annotations


def label_map(scene: Scene) -> np.ndarray:
    """Return ADE20K style labels (H, W) uint8: 0 = ground, 1..10 = category id."""
    return (scene.masks * (scene.labels[:, None, None] + 1)).sum(0).astype(np.uint8)


def stuff_map(scene: Scene) -> np.ndarray:
    """Return labels (H, W) uint8 of a semantic branch: 0..9 = class index, 10 = ground.

    255, which the hosts ignore, does not occur, because the ground is a class.
    """
    labels = label_map(scene)
    return np.where(labels == 0, GROUND, labels - 1).astype(np.uint8)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    pixels = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    if not cv2.imwrite(str(path), pixels):
        raise OSError(f'{path}: the image could not be written')


Track = Callable[..., Iterable]


def _no_progress(items: Iterable, description: str) -> Iterable:
    return items


def _write_scenes(root: Path, split: str, params: DigitSceneParams, track: Track) -> None:
    """Write images, labels, stuff maps and the COCO file of one split."""
    folders = root / split, root / 'annotations' / split, root / 'stuffthingmaps' / split
    for folder in folders:
        folder.mkdir(parents=True)
    scans = load_scans(split)
    images, annotations = [], []
    for index in track(range(getattr(params, split)), description=f'{split} scenes'):
        scene = render_scene(scene_rng(params.seed, split, index), scans, params)
        name = f'{index:06d}.png'
        for folder, pixels in zip(folders, (scene.image, label_map(scene), stuff_map(scene))):
            _write_png(folder / name, pixels)
        height, width = params.image_size
        images.append(dict(id=index, file_name=name, height=height, width=width))
        annotations += coco_annotations(scene, image_id=index, first_id=len(annotations) + 1)
    categories = [
        dict(id=index + 1, name=name, supercategory='digit') for index, name in enumerate(CLASSES)
    ]
    content = dict(images=images, annotations=annotations, categories=categories)
    path = root / 'annotations' / f'instances_{split}.json'
    path.write_text(json.dumps(content, separators=(',', ':')))


def _views(split: str, params: DigitSceneParams) -> int:
    """Return the number of classification images of one scan."""
    return params.crop_views if split == 'train' else 1


def _write_crops(root: Path, split: str, params: DigitSceneParams, track: Track) -> None:
    """Write the classification images of one split."""
    folder = root / 'classification' / split
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    scans = load_scans(split)
    for index in track(range(len(scans.ids)), description=f'{split} crops'):
        scan, label = int(scans.ids[index]), scans.labels[index]
        for view in range(_views(split, params)):
            rng = np.random.default_rng((params.seed, len(SPLITS), scan, view))
            crop = render_crop(rng, scans.images[index], params.crop_size)
            _write_png(folder / CLASSES[label] / f'{scan:04d}_{view}.png', crop)


def _meta(params: DigitSceneParams) -> dict:
    # through json, so that tuples compare equal to lists read from a file
    return json.loads(json.dumps(dict(format_version=FORMAT_VERSION, **asdict(params))))


def _fault(root: Path, params: DigitSceneParams) -> str | None:
    """Return why ``root`` is not a complete set with these parameters; None if it is."""
    if not (root / 'meta.json').is_file():
        return 'it has no meta.json, so it is incomplete or not a set of digit scenes'
    try:
        found = json.loads((root / 'meta.json').read_text())
    except json.JSONDecodeError as error:
        return f'its meta.json is damaged ({error})'
    for key, value in _meta(params).items():
        if found.get(key) != value:
            return f'it was made with {key}={found.get(key)}, not {value}'
    for split in SPLITS:
        if not (root / 'annotations' / f'instances_{split}.json').is_file():
            return f'annotations/instances_{split}.json is missing'
        scenes = getattr(params, split)
        counts = {split: scenes, f'annotations/{split}': scenes, f'stuffthingmaps/{split}': scenes}
        counts[f'classification/{split}'] = len(load_scans(split).ids) * _views(split, params)
        for folder, count in counts.items():
            present = len(list((root / folder).rglob('*.png')))
            if present != count:
                return f'{folder} has {present} of {count} images'
    return None


def _check_own(folder: Path) -> None:
    """Raise an error if a folder to remove contains files that are not part of a set."""
    foreign = sorted({path.name for path in folder.iterdir()} - _LAYOUT)
    if foreign:
        raise FileExistsError(f'{folder} is not removed: it has other files: {foreign[:5]}')


def build(
    root: str | Path,
    params: DigitSceneParams,
    overwrite: bool = False,
    track: Track = _no_progress,
) -> bool:
    """Generate the set under ``root``, unless a complete set of these parameters exists.

    The set is written to ``<root>.partial`` and moved when it is complete, so an interrupted run
    leaves no incomplete set; the next run starts again.

    Args:
        root: Output folder.
        params: Parameters of the set.
        overwrite: Replace another or a damaged set.
        track: Function of a sequence and ``description=`` that yields items and shows progress.

    Returns:
        True if the set was generated, False if it existed.

    Raises:
        FileExistsError: ``root`` has other content or, with ``overwrite``, files that are not part
            of a set.
    """
    root = Path(root).resolve()
    partial = root.with_name(f'{root.name}.partial')
    if root.exists() and not root.is_dir():
        raise FileExistsError(f'{root}: expected a folder, found a file')
    if root.exists() and any(root.iterdir()):
        fault = _fault(root, params)
        if fault is None:
            return False
        if not overwrite:
            hint = 'overwrite=True (--overwrite) replaces it'
            raise FileExistsError(f'{root} differs from the requested set: {fault}; {hint}')
        _check_own(root)
    if partial.exists():
        _check_own(partial)
        shutil.rmtree(partial)
    for split in SPLITS:
        _write_scenes(partial, split, params, track)
        _write_crops(partial, split, params, track)
    (partial / 'meta.json').write_text(json.dumps(_meta(params), indent=2) + '\n')
    if root.exists():
        shutil.rmtree(root)
    os.replace(partial, root)
    return True
