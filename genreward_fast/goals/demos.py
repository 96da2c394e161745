"""Demonstrations to fine-tune the video model on, from a folder of any kind that is known.

    demos.json      what `genreward demos` writes (demo_files.py)
    meta/info.json  a LeRobot dataset: RT-1, Bridge, RLBench (lerobot.py)
    video files     with captions beside them (clip_folder.py)

Clips of one set may differ in frame size and rate. Whoever needs them alike takes a fixed number of frames spread
evenly over each clip, cropped and resized (latent_cache.py): then a rate means nothing, and a size only sharpness.
"""

from __future__ import annotations

from pathlib import Path

from genreward_fast.errors import UserError
from genreward_fast.goals import demo_files
from genreward_fast.goals.clip_folder import read_clip_folder, videos
from genreward_fast.goals.demo_set import Demo, DemoSet
from genreward_fast.goals.lerobot import INFO, read_lerobot

__all__ = ["Demo", "DemoSet", "read_demos"]


def read_demos(folder: str | Path, *, camera: str | None = None) -> DemoSet:
    """The clips of a folder. No video is opened yet.

    Args:
        camera: of a LeRobot dataset, which of its cameras; see `read_lerobot`.

    Raises:
        UserError: there is no such folder, it holds no demonstrations, or a file of it is missing or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of demonstrations; make one with genreward demos")
    if (folder / demo_files.SETTINGS).exists():
        return demo_files.read(folder)
    if (folder / INFO).exists():
        return read_lerobot(folder, camera)
    if videos(folder):
        return read_clip_folder(folder)
    raise UserError(
        f"{folder}: holds no demonstrations: neither {demo_files.SETTINGS} (genreward demos) nor {INFO} (LeRobot) nor "
        "video files"
    )
