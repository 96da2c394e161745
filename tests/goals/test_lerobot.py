"""Small datasets on the disk as LeRobot 2.1 and 3.0 write them (the fields are those of huggingface/lerobot 0.4)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.goals.demos import read_demos
from genreward_fast.goals.lerobot import read_lerobot
from genreward_fast.goals.video_io import write_video

FPS = 10
CAMERAS = ("observation.images.image_0", "observation.images.wrist")
TASKS: list[list[str]] = [["pick up the ball"], [""], ["open the drawer", "pull the drawer open"]]
LENGTHS = [5, 3, 7]
PATHS = {
    "v2.1": {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    },
    "v3.0": {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    },
}


def episode(index: int, camera: int) -> torch.Tensor:
    """Frame t of an episode is grey of a level that no other frame of the dataset has."""
    levels = 20 + 130 * camera + 8 * (sum(LENGTHS[:index]) + torch.arange(LENGTHS[index]))
    return levels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 32, 32, 3).contiguous()


def write_info(folder: Path, version: str) -> None:
    features: dict[str, Any] = {"action": {"dtype": "float32", "shape": [7]}}
    features |= {camera: {"dtype": "video", "shape": [32, 32, 3]} for camera in CAMERAS}
    info = {"codebase_version": version, "fps": FPS, "chunks_size": 2, "features": features, **PATHS[version]}
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))


def write_v21(folder: Path) -> None:
    write_info(folder, "v2.1")
    lines = []
    for index, (tasks, length) in enumerate(zip(TASKS, LENGTHS)):
        lines.append(json.dumps({"episode_index": index, "tasks": tasks, "length": length}) + "\n")
        for number, camera in enumerate(CAMERAS):
            path = folder / f"videos/chunk-{index // 2:03d}/{camera}/episode_{index:06d}.mp4"
            write_video(path, episode(index, number), FPS)
    (folder / "meta" / "episodes.jsonl").write_text("".join(lines))


def write_v30(folder: Path) -> None:
    """The first two episodes share the first video file, the third has the second."""
    import pyarrow
    from pyarrow import parquet

    write_info(folder, "v3.0")
    for number, camera in enumerate(CAMERAS):
        first = torch.cat([episode(0, number), episode(1, number)])
        write_video(folder / f"videos/{camera}/chunk-000/file-000.mp4", torch.cat([first, first.flip(0)]), FPS)
        lead = episode(2, number).flip(0)[:4]  # so that the episode begins within the file
        write_video(folder / f"videos/{camera}/chunk-000/file-001.mp4", torch.cat([lead, episode(2, number)]), FPS)
    columns: dict[str, list[Any]] = {
        "episode_index": [0, 1, 2],
        "tasks": TASKS,
        "length": LENGTHS,
        "stats/action/min": [[0.0], [0.0], [0.0]],
    }
    for camera in CAMERAS:
        columns[f"videos/{camera}/chunk_index"] = [0, 0, 0]
        columns[f"videos/{camera}/file_index"] = [0, 0, 1]
        columns[f"videos/{camera}/from_timestamp"] = [0.0, 0.5, 0.4]
        columns[f"videos/{camera}/to_timestamp"] = [0.5, 0.8, 1.1]
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.table(columns), path)


@pytest.fixture(params=["v2.1", "v3.0"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "v3.0":
        pytest.importorskip("pyarrow")
        write_v30(tmp_path)
    else:
        write_v21(tmp_path)
    return tmp_path


def levels(frames: torch.Tensor) -> torch.Tensor:
    return frames.float().mean((1, 2, 3))


@pytest.mark.parametrize("camera", [0, 1])
def test_episodes_become_clips(dataset: Path, camera: int) -> None:
    demos = read_demos(dataset, camera=[None, "wrist"][camera])
    assert [demo.name for demo in demos] == ["episode-000000", "episode-000002"]
    assert [demo.captions for demo in demos] == [tuple(TASKS[0]), tuple(TASKS[2])]
    assert demos.notes == (f"camera {CAMERAS[camera]}", "1 episodes without a sentence are left out")
    for demo, index in zip(demos, (0, 2)):
        frames = demo.frames()
        expected = episode(index, camera)
        assert frames.shape == expected.shape
        assert (levels(frames) - levels(expected)).abs().max() < 3  # the next frame is 8 levels away
    assert demos[0].sha256 != demos[1].sha256


def test_a_camera_by_its_whole_name(dataset: Path) -> None:
    assert read_lerobot(dataset, CAMERAS[1]).notes[0] == f"camera {CAMERAS[1]}"
    with pytest.raises(UserError, match=r"camera 'front'.*image_0, observation\.images\.wrist"):
        read_lerobot(dataset, "front")


def test_missing_and_damaged_files(dataset: Path) -> None:
    demos = read_demos(dataset)
    data = demos[0].path.read_bytes()
    demos[0].path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=demos[0].path.name):
        demos[0].frames()
    demos[0].path.unlink()
    with pytest.raises(UserError, match=rf"{demos[0].path.name}: is missing, but episode 0"):
        read_demos(dataset)
    episodes = next(path for path in (dataset / "meta").rglob("*") if path.is_file() and path.name != "info.json")
    episodes.write_bytes(b"{ nothing")
    with pytest.raises(UserError, match=rf"{episodes.name}.*download the dataset again"):
        read_demos(dataset)
    episodes.unlink()
    with pytest.raises(UserError, match="episodes"):
        read_demos(dataset)


def change_info(folder: Path, **changes: Any) -> None:
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_datasets_that_cannot_be_read(dataset: Path) -> None:
    change_info(dataset, codebase_version="v1.6")
    with pytest.raises(UserError, match=r"version v1\.6.*v3\.0"):
        read_demos(dataset)
    change_info(dataset, features={"observation.image": {"dtype": "image"}})
    with pytest.raises(UserError, match="pictures lie in parquet files"):
        read_demos(dataset)
    change_info(dataset, features=3)
    with pytest.raises(UserError, match="does not describe a LeRobot dataset"):
        read_demos(dataset)


def test_entries_that_are_damaged(tmp_path: Path) -> None:
    write_v21(tmp_path)
    path = tmp_path / "meta" / "episodes.jsonl"
    path.write_text('{"episode_index": 0, "length": 5}\n')
    with pytest.raises(UserError, match="entry is damaged"):
        read_demos(tmp_path)
    path.write_text('{"episode_index": 0, "length": 5, "tasks": [""]}\n')
    with pytest.raises(UserError, match="none of its 1 episodes has a sentence"):
        read_demos(tmp_path)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_info(tmp_path, "v3.0")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"genreward-fast\[lerobot\]"):
        read_demos(tmp_path)
