from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from genreward_fast.encoders.clip import TextImageEncoder
from genreward_fast.errors import UserError
from genreward_fast.goals import goal_files
from genreward_fast.goals.frames import to_square
from genreward_fast.goals.goal import Goal
from genreward_fast.goals.goal_files import FILES
from genreward_fast.goals.video_io import read_video, write_video


@pytest.fixture
def goal(video: torch.Tensor, encoder: TextImageEncoder) -> Goal:
    return Goal.from_video(video, "pick up the ball", encoder=encoder, provenance={"task": "pick-place", "seed": 3})


def test_from_frames(goal: Goal, video: torch.Tensor, encoder: TextImageEncoder) -> None:
    assert goal.scores is not None
    assert goal.frame_index == int(goal.scores.argmax())
    assert torch.equal(goal.video, video)
    assert goal.note == "untrained encoders"
    assert goal.provenance["encoders"] == {"clip": encoder.fingerprint}
    assert goal.provenance["select"] == "clip"
    assert goal.provenance["source"] == "frames"
    assert goal.provenance["task"] == "pick-place"


def test_from_a_file(video: torch.Tensor, encoder: TextImageEncoder, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, video, fps=4)
    goal = Goal.from_video(path, " pick up the ball ", encoder=encoder, select="last")
    assert goal.text == "pick up the ball"
    assert goal.fps == 4
    assert goal.frame_index == 9
    assert torch.equal(goal.video, read_video(path)[0])
    assert goal.provenance["source"] == str(path)
    assert goal.provenance["source_sha256"] == goal_files.file_sha256(path)


def test_without_an_encoder(video: torch.Tensor) -> None:
    goal = Goal.from_video(video, "x", select=4)
    assert goal.frame_index == 4
    assert goal.scores is None
    assert goal.note == ""


def test_clip_and_frame(goal: Goal) -> None:
    clip = goal.clip(4, 32)
    assert clip.shape == (4, 32, 32, 3)
    assert clip.dtype == torch.uint8
    assert torch.equal(clip, to_square(goal.video[[0, 3, 6, 9]], 32))
    assert torch.equal(goal.clip(10, 48), goal.video[:, :, 8:56])
    assert goal.clip(16, 8).shape == (16, 8, 8, 3)
    assert torch.equal(goal.frame(48), goal.video[goal.frame_index, :, 8:56])
    with pytest.raises(UserError, match="clip length 0"):
        goal.clip(0, 8)


@pytest.mark.parametrize("scored", [True, False])
def test_round_trip(goal: Goal, video: torch.Tensor, tmp_path: Path, scored: bool) -> None:
    goal = goal if scored else Goal.from_video(video, "öffne die Schublade", select="last")
    folder = goal.save(tmp_path / "deep" / "goal")
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["goal"]
    read = Goal.load(folder)
    assert torch.equal(read.video, goal.video)
    for name in ("text", "frame_index", "fps", "provenance", "sha256"):
        assert getattr(read, name) == getattr(goal, name)
    for name in ("scores", "frame_embeddings", "text_embedding"):
        mine, theirs = getattr(goal, name), getattr(read, name)
        assert (mine is None) == (theirs is None) == (not scored)
        assert mine is None or torch.equal(mine, theirs)
    assert read_video(folder / "goal.mp4")[0].shape == goal.video.shape
    assert Image.open(folder / "contact_sheet.png").mode == "RGB"


def test_identity(goal: Goal, video: torch.Tensor) -> None:
    changed = video.clone()
    changed[0, 0, 0, 0] += 1
    others = [
        Goal.from_video(changed, goal.text, select=goal.frame_index),
        Goal.from_video(video, goal.text, select=(goal.frame_index + 1) % 10),
        Goal.from_video(video, "another text", select=goal.frame_index),
    ]
    assert Goal.from_video(video, goal.text, select=goal.frame_index).sha256 == goal.sha256
    assert len({goal.sha256, *(other.sha256 for other in others)}) == 4


def test_overwriting(goal: Goal, video: torch.Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "goal"
    goal.save(folder)
    other = Goal.from_video(video, "another text", select="last")
    with pytest.raises(UserError, match="already holds a goal"):
        other.save(folder)
    assert Goal.load(folder).text == goal.text
    other.save(folder, overwrite=True)
    assert Goal.load(folder).text == "another text"
    assert [path.name for path in tmp_path.iterdir()] == ["goal"]


def test_other_files_are_never_deleted(goal: Goal, tmp_path: Path) -> None:
    folder = tmp_path / "goal"
    folder.mkdir()
    goal.save(folder)  # an empty folder is free
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        goal.save(folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        goal.save(tmp_path / "file", overwrite=True)


def test_a_failed_save_leaves_nothing(goal: Goal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goal.save(tmp_path / "goal")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(goal_files, "write_video", fail)
    with pytest.raises(OSError, match="no space"):
        goal.save(tmp_path / "goal", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["goal"]
    assert Goal.load(tmp_path / "goal").sha256 == goal.sha256


def refused(folder: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        Goal.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "goal", "no such goal folder")


@pytest.mark.parametrize("name", sorted(FILES))
def test_missing_file(goal: Goal, tmp_path: Path, name: str) -> None:
    folder = goal.save(tmp_path / "goal")
    (folder / name).unlink()
    refused(folder, f"lacks {name}")


def test_foreign_file(goal: Goal, tmp_path: Path) -> None:
    folder = goal.save(tmp_path / "goal")
    (folder / "extra.txt").write_text("x")
    refused(folder, "extra.txt: does not belong")


@pytest.mark.parametrize("name", sorted(FILES - {"goal.json"}))
def test_altered_byte(goal: Goal, tmp_path: Path, name: str) -> None:
    folder = goal.save(tmp_path / "goal")
    data = bytearray((folder / name).read_bytes())
    data[-5] ^= 1
    (folder / name).write_bytes(data)
    refused(folder, f"{name}: has been altered")


def test_half_a_file(goal: Goal, tmp_path: Path) -> None:
    folder = goal.save(tmp_path / "goal")
    path = folder / "frames.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    refused(folder, "altered")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"frame_index": 1}, "altered"),
        ({"text": "open the drawer"}, "altered"),
        ({"sha256": "0"}, "altered"),
        ({"version": 99}, "not the record"),
        ({"format": "another"}, "not the record"),
    ],
)
def test_altered_record(goal: Goal, tmp_path: Path, change: dict[str, Any], match: str) -> None:
    folder = goal.save(tmp_path / "goal")
    record = json.loads((folder / "goal.json").read_text())
    assert all(record[key] != value for key, value in change.items())
    (folder / "goal.json").write_text(json.dumps(record | change))
    refused(folder, match)
    (folder / "goal.json").write_text("[1, 2")
    refused(folder, "not readable as JSON")
    (folder / "goal.json").write_text("[1, 2]")
    refused(folder, "not the record")


def resign(folder: Path, change: dict[str, Any]) -> None:
    """Makes the checksums right again, as a program with a mistake in it would."""
    record = json.loads((folder / "goal.json").read_text()) | change
    del record["sha256"]
    record["files"] = {name: goal_files.file_sha256(folder / name) for name in record["files"]}
    (folder / "goal.json").write_text(json.dumps(record | {"sha256": goal_files._digest(record)}))


def test_wrong_shapes(goal: Goal, tmp_path: Path) -> None:
    folder = goal.save(tmp_path / "goal")
    shutil.copytree(folder, tmp_path / "index")
    resign(tmp_path / "index", {"frame_index": 10})
    refused(tmp_path / "index", "frame_index 10")
    tensors = load_file(folder / "frames.safetensors")
    for name, wrong, match in (
        ("scores", torch.zeros(9), "scores must be"),
        ("video", tensors["video"][:9], "another shape"),
        ("stranger", torch.zeros(1), "stranger"),
    ):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        save_file(tensors | {name: wrong.contiguous()}, copy / "frames.safetensors")
        resign(copy, {})
        refused(copy, match)


def test_bad_fields(video: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="video must be"):
        Goal("x", video[:1], 0)
    with pytest.raises(ValueError, match="video must be"):
        Goal("x", video.float(), 0)
    with pytest.raises(ValueError, match="frame_index"):
        Goal("x", video, 10)
    with pytest.raises(ValueError, match="text"):
        Goal(" ", video, 0)
    with pytest.raises(ValueError, match="JSON"):
        Goal("x", video, 0, provenance={"score": float("nan")})
    with pytest.raises(UserError, match="text: is empty"):
        Goal.from_video(video, "", select="last")
