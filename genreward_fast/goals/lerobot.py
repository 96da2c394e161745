"""LeRobot datasets, versions 2.0, 2.1 and 3.0, as they lie on the disk: RT-1, Bridge and RLBench come as such.

The format is read here with pyarrow and PyAV. The library `lerobot` itself (0.4) cannot stand beside this project: it
requires torch < 2.11, diffusers < 0.36, huggingface-hub < 0.36 and av < 16. Of a dataset only the videos and the
sentences matter here, not the states and actions:

    meta/info.json           codebase_version, fps, features, chunks_size, video_path
    2.x  meta/episodes.jsonl {"episode_index": 0, "tasks": ["pick up the ball"], "length": 120}; one video an episode
    3.0  meta/episodes/chunk-000/file-000.parquet, with the columns episode_index, tasks, length and, for each camera
         C, videos/C/chunk_index, videos/C/file_index, videos/C/from_timestamp; many episodes a video

Source: huggingface/lerobot, `datasets/utils.py` and `datasets/v30/convert_dataset_v21_to_v30.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genreward_fast.errors import UserError
from genreward_fast.files import read_json
from genreward_fast.goals.demo_set import Demo, DemoSet

INFO = "meta/info.json"


def read_lerobot(folder: Path, camera: str | None = None) -> DemoSet:
    """The episodes of a dataset as clips, in their order. Episodes without a sentence are left out and counted.

    Args:
        camera: which of the dataset's cameras, by its whole name or by what follows the last dot
            (`observation.images.image_0` or `image_0`); None for the first that info.json lists.

    Raises:
        UserError: a file is missing or damaged, the version is another, or there is no such camera.
    """
    info = read_json(folder / INFO)
    try:
        version = str(info["codebase_version"])
        template, chunks_size = str(info["video_path"]), int(info.get("chunks_size", 1000))
        kinds = {name: feature["dtype"] for name, feature in info["features"].items()}
    except (TypeError, KeyError, ValueError, AttributeError):
        raise UserError(f"{folder / INFO}: does not describe a LeRobot dataset with videos") from None
    key = _camera(folder, kinds, camera)
    if version.startswith("v2."):
        episodes: Iterator[dict[str, Any]] = _episodes_2(folder)
    elif version.startswith("v3."):
        episodes = _episodes_3(folder, key)
    else:
        raise UserError(f"{folder / INFO}: version {version} is not read; convert the dataset to v2.1 or v3.0")
    demos, silent = [], 0
    for episode in episodes:
        try:
            demo = _demo(folder, episode, key, template, chunks_size)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{folder / 'meta'}: an episode's entry is damaged ({error!r})") from None
        if demo is None:
            silent += 1
        else:
            demos.append(demo)
    if silent and not demos:
        raise UserError(f"{folder}: none of its {silent} episodes has a sentence")
    notes = [f"camera {key}"]
    if silent:
        notes.append(f"{silent} episodes without a sentence are left out")
    return DemoSet(folder, demos, notes)


def _demo(folder: Path, episode: dict[str, Any], key: str, template: str, chunks_size: int) -> Demo | None:
    index, length = int(episode["episode_index"]), int(episode["length"])
    captions = tuple(dict.fromkeys(task.strip() for task in episode["tasks"] if task.strip()))
    if not captions:
        return None
    start: float = 0.0
    if "file_index" in episode:
        place = {"chunk_index": int(episode["chunk_index"]), "file_index": int(episode["file_index"])}
        start = float(episode["from_timestamp"])
    else:
        place = {"episode_chunk": index // chunks_size, "episode_index": index}
    path = folder / template.format(video_key=key, **place)
    if not path.is_file():
        raise UserError(f"{path}: is missing, but episode {index} of the dataset lies there; download it again")
    return Demo(f"episode-{index:06d}", path, captions, start, length, details={"episode": index, "camera": key})


def _camera(folder: Path, kinds: dict[str, str], camera: str | None) -> str:
    cameras = [name for name, kind in kinds.items() if kind == "video"]
    if not cameras:
        why = "its pictures lie in parquet files" if "image" in kinds.values() else "it has no pictures"
        raise UserError(f"{folder}: has no videos ({why}); convert it to a LeRobot dataset with videos")
    if camera is None:
        return cameras[0]
    matches = [name for name in cameras if camera in (name, name.rpartition(".")[2])]
    if len(matches) != 1:
        raise UserError(f"camera {camera!r}: the dataset {folder} has {', '.join(cameras)}; choose one of them")
    return matches[0]


def _episodes_2(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / "meta" / "episodes.jsonl"
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error.__class__.__name__}); download the dataset again") from None
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            raise UserError(f"{path}, line {number}: is damaged; download the dataset again") from None


def _episodes_3(folder: Path, key: str) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{folder}: LeRobot datasets of version 3.0 need pyarrow; pip install 'genreward-fast[lerobot]'"
        ) from None
    paths = sorted((folder / "meta" / "episodes").glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{folder / 'meta' / 'episodes'}: holds no parquet files; download the dataset again")
    where = {f"videos/{key}/{name}": name for name in ("chunk_index", "file_index", "from_timestamp")}
    for path in paths:
        try:
            table = parquet.read_table(path, columns=["episode_index", "tasks", "length", *where])
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(
                f"{path}: cannot be read ({error.__class__.__name__}); download the dataset again"
            ) from None
        for row in table.to_pylist():
            yield {where.get(name, name): value for name, value in row.items()}
