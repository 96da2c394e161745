"""Videos to put behind an agent: from a folder, in the layout of DAVIS 2017 or any other, or procedural.

A video is a function from a size to its pictures, each of them (size, size, 3) uint8 RGB. Nothing is read before it is
called, and image files not before their picture is asked for.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from genreward_fast.envs.seeds import Split
from genreward_fast.errors import UserError


class Pictures(Protocol):
    """What a list of pictures offers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...


Video = Callable[[int], Pictures]

PROCEDURAL_VIDEOS = {"train": 60, "eval": 30}  # as many as DAVIS 2017 has
PROCEDURAL_LENGTH = 60
LONGEST_FILE = 300
"""Frames of a video file that are used: they are all in memory at once."""

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_FILES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
_DAVIS = ("DAVIS/JPEGImages/480p", "JPEGImages/480p", "480p")
_PARTS = {"train": "train.txt", "eval": "val.txt"}
_WAVES = 6


class LazyPictures:
    """Pictures that are made when they are first asked for, and then kept."""

    def __init__(self, length: int, make: Callable[[int], np.ndarray]):
        self._length, self._make = length, make
        self._made: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> np.ndarray:
        if index not in self._made:
            self._made[index] = self._make(index)
        return self._made[index]


def find_videos(folder: str | Path | None, split: Split, count: int | None) -> list[Video]:
    """The first `count` videos of a split, in the order of their names; None for all of them.

    DAVIS 2017, given by any of its folders down to `JPEGImages/480p`, is split as its own `ImageSets/2017` says: 60
    sequences for training, 30 for evaluation. In any other folder the last third is for evaluation. Each of its
    subfolders with images is a video, and so are each video file and each image in it.

    Args:
        folder: None for procedural videos, 60 and 30.
        split: "eval", or else those of training. Evaluation takes as many of `count` as there are.

    Raises:
        UserError: the folder is missing, or has too few videos.
    """
    if folder is None:
        numbers = range(PROCEDURAL_VIDEOS["train"])
        if split == "eval":
            numbers = range(len(numbers), len(numbers) + PROCEDURAL_VIDEOS["eval"])
        return [functools.partial(procedural_video, number) for number in numbers[:count]]
    root = _videos_folder(Path(folder))
    names = _names(root)
    if len(names) < 2:
        raise UserError(
            f"backgrounds {folder}: has {len(names)} videos or images, and needs at least 2, one of them for evaluation"
        )
    chosen = _of_split(root, names, split)[:count]
    if not chosen or (split != "eval" and count is not None and len(chosen) < count):
        raise UserError(
            f"backgrounds {folder}: has {len(chosen)} videos for {'evaluation' if split == 'eval' else 'training'}, "
            f"and this difficulty takes {count or 'at least 1'}; add some, or choose another difficulty"
        )
    return [_video(root / name) for name in chosen]


def _videos_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"backgrounds {folder}: no such folder")
    return next((folder / inside for inside in _DAVIS if (folder / inside).is_dir()), folder)


def _names(root: Path) -> list[str]:
    return sorted(
        path.name
        for path in root.iterdir()
        if (path.suffix.lower() in (*_IMAGES, *_FILES) if path.is_file() else bool(_images(path)))
    )


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGES)


def _of_split(root: Path, names: list[str], split: Split) -> list[str]:
    part = "eval" if split == "eval" else "train"
    listed = root.parent.parent / "ImageSets" / "2017" / _PARTS[part]
    if listed.is_file():
        wanted = set(listed.read_text(encoding="utf-8").split())
        return [name for name in names if name in wanted]
    middle = len(names) - max(1, len(names) // 3)
    return names[middle:] if part == "eval" else names[:middle]


def _video(path: Path) -> Video:
    if path.is_dir():
        return functools.partial(_image_sequence, _images(path))
    if path.suffix.lower() in _IMAGES:
        return functools.partial(_image_sequence, [path])
    return functools.partial(_video_file, path)


def _image_sequence(paths: list[Path], size: int) -> Pictures:
    return LazyPictures(len(paths), lambda index: read_image(paths[index], size))


def read_image(path: Path, size: int) -> np.ndarray:
    """An image file stretched to a square.

    Raises:
        UserError: it cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.draft("RGB", (size, size))  # a JPEG is decoded at half or a quarter of its size where that is enough
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be decoded ({type(error).__name__}); it is damaged or not an image") from error


def _video_file(path: Path, size: int) -> Pictures:
    import av

    try:
        with av.open(str(path)) as container:
            frames = itertools.islice(container.decode(video=0), LONGEST_FILE)
            pictures = [frame.to_ndarray(format="rgb24", width=size, height=size) for frame in frames]
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise UserError(f"{path}: cannot be decoded ({type(error).__name__}); it is damaged or not a video") from error
    if not pictures:
        raise UserError(f"{path}: has no frames")
    return pictures


def procedural_video(number: int, size: int) -> Pictures:
    """Coloured waves that drift across each other, with discs moving over them; as it was for every equal `number`.

    After its last frame its first one follows.
    """
    random = np.random.default_rng([number, 7])
    direction = random.integers(-4, 5, (_WAVES, 2))
    turns = random.choice((-2, -1, 1, 2), _WAVES)
    phase = random.uniform(0, 2 * np.pi, _WAVES).astype(np.float32)
    color = random.normal(0, 0.16, (_WAVES, 3)).astype(np.float32)
    base = random.uniform(0.25, 0.75, 3).astype(np.float32)
    discs = random.integers(2, 6)
    start, radius = random.uniform(0, 1, (discs, 2)).astype(np.float32), random.uniform(0.04, 0.14, discs)
    laps, disc_color = random.integers(-1, 2, (discs, 2)), random.uniform(0, 1, (discs, 3))
    # sin(a + b) = sin a cos b + cos a sin b: of each wave a line of pixels across and one down, instead of all of them.
    line = np.arange(size, dtype=np.float32) / size
    across = 2 * np.pi * direction[:, :1] * line
    across_lines = np.concatenate([np.sin(across), np.cos(across)])
    colored = (across_lines[:, :, None] * np.tile(color, (2, 1))[:, None]).reshape(2 * _WAVES, -1).astype(np.float32)

    def frame(index: int) -> np.ndarray:
        time = index / PROCEDURAL_LENGTH
        down = 2 * np.pi * (direction[:, 1:] * line + turns[:, None] * time) + phase[:, None]
        down_lines = np.concatenate([np.cos(down), np.sin(down)]).astype(np.float32)
        picture = base + (down_lines.T @ colored).reshape(size, size, 3)
        for disc in range(discs):
            # Half a turn to each side: discs that leave the picture come back on its other side.
            x, y = (line[:, None] - start[disc] - laps[disc] * time + 0.5).T % 1 - 0.5
            picture[x**2 + y[:, None] ** 2 < radius[disc] ** 2] = disc_color[disc]
        return (255 * picture.clip(0, 1)).round().astype(np.uint8)

    return LazyPictures(PROCEDURAL_LENGTH, frame)
