from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.goals.demos import read_demos
from genreward_fast.goals.video_io import write_video


def clip(path: Path, *, length: int = 4, height: int = 32, width: int = 48, grey: int = 0, fps: float = 8) -> None:
    """Frame t is grey of the level `grey` + 20 t."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = (grey + 20 * torch.arange(length)).to(torch.uint8)
    write_video(path, levels.view(-1, 1, 1, 1).expand(length, height, width, 3).contiguous(), fps)


def write_jsonl(path: Path, *lines: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        read_demos(folder)
    assert "\n" not in str(caught.value)


def test_captions_in_files_beside(tmp_path: Path) -> None:
    clip(tmp_path / "b.mp4", grey=100)
    clip(tmp_path / "sub" / "a.mp4", height=64, fps=30)
    (tmp_path / "b.txt").write_text("push the ball\n\n  roll the ball \n")
    (tmp_path / "sub" / "a.txt").write_text("open the door")
    demos = read_demos(tmp_path)
    assert [(demo.name, demo.captions) for demo in demos] == [
        ("b.mp4", ("push the ball", "roll the ball")),
        ("sub/a.mp4", ("open the door",)),
    ]
    frames = demos[0].frames()
    assert frames.shape == (4, 32, 48, 3)
    assert frames.dtype == torch.uint8
    assert (frames.float().mean((1, 2, 3)) - torch.tensor([100.0, 120.0, 140.0, 160.0])).abs().max() < 5
    assert demos[1].frames().shape == (4, 64, 48, 3)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_captions_in_one_file(tmp_path: Path, form: str) -> None:
    for name in ("a.mp4", "b.mp4"):
        clip(tmp_path / name)
    if form == "csv":
        rows = '\ufefffile,caption\na.mp4,"pick up the ball, slowly"\nb.mp4,push\na.mp4,grasp the ball\n'
        (tmp_path / "captions.csv").write_text(rows, encoding="utf-8")
    else:
        wordings = ["pick up the ball, slowly", "grasp the ball"]
        write_jsonl(
            tmp_path / "captions.jsonl", {"file": "a.mp4", "captions": wordings}, {"file": "b.mp4", "caption": "push"}
        )
    demos = read_demos(tmp_path)
    assert [demo.captions for demo in demos] == [("pick up the ball, slowly", "grasp the ball"), ("push",)]


def test_a_clip_is_known_by_its_bytes(tmp_path: Path) -> None:
    for name, grey in (("a", 0), ("b", 0), ("c", 10)):
        clip(tmp_path / f"{name}.mp4", grey=grey)
        (tmp_path / f"{name}.txt").write_text("push")
    a, b, c = read_demos(tmp_path)
    assert a.sha256 == b.sha256 != c.sha256


def test_videos_without_captions(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    refused(tmp_path, r"a\.mp4: has no caption; add a\.txt beside it")
    (tmp_path / "a.txt").write_text(" \n")
    refused(tmp_path, r"a\.mp4: has no caption")
    write_jsonl(tmp_path / "captions.jsonl", {"file": "a.mp4", "caption": " "})
    refused(tmp_path, r"captions\.jsonl, line 1: the caption is empty")
    clip(tmp_path / "b.mp4")
    write_jsonl(tmp_path / "captions.jsonl", {"file": "a.mp4", "caption": "push"})
    refused(tmp_path, r"b\.mp4: has no caption; add a line in captions\.jsonl")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"file": "a.mp4"}, "line 1: must be"),
        ({"file": "a.mp4", "captions": "push"}, "line 1: captions must be a list"),
        ({"file": "a.mp4", "captions": ["push", 3]}, "line 1: the caption is empty"),
        ({"file": "../a.mp4", "caption": "push"}, "inside the folder"),
        ({"file": "/a.mp4", "caption": "push"}, "inside the folder"),
        ({"file": "c.mp4", "caption": "push"}, r"names c\.mp4, but there is no such file"),
        ("a.mp4", "line 1: must be"),
    ],
)
def test_bad_lines_of_captions(tmp_path: Path, line: Any, says: str) -> None:
    clip(tmp_path / "a.mp4")
    write_jsonl(tmp_path / "captions.jsonl", line)
    refused(tmp_path, says)


def test_bad_tables_of_captions(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    (tmp_path / "captions.csv").write_text("a.mp4,push\n")
    refused(tmp_path, "must name the columns file and caption")
    (tmp_path / "captions.csv").write_text("file,caption\na.mp4\n")
    refused(tmp_path, r"captions\.csv, line 2: the caption is empty")
    (tmp_path / "captions.csv").write_bytes(b"file,caption\na.mp4,\xff\xfe\n")
    refused(tmp_path, "cannot be read as UTF-8")
    write_jsonl(tmp_path / "captions.jsonl", {"file": "a.mp4", "caption": "push"})
    refused(tmp_path, "keep one of them")


def test_a_broken_video_is_named_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video at all" * 100)
    (tmp_path / "a.txt").write_text("push")
    demo = read_demos(tmp_path)[0]
    with pytest.raises(UserError, match=r"a\.mp4: cannot be decoded"):
        demo.frames()
    demo.path.unlink()
    with pytest.raises(UserError, match=r"a\.mp4: no such video file"):
        _ = demo.sha256


def test_folders_of_something_else(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder")
    refused(tmp_path, "holds no demonstrations")
    (tmp_path / "thesis.tex").write_text("years of work")
    refused(tmp_path, "holds no demonstrations")


SETTINGS = {"format": "genreward demonstrations", "version": 1}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"file": "clips/a.mp4", "captions": []}, "caption is empty or missing"),
        ({"file": "clips/a.mp4", "captions": ["push", ""]}, "caption is empty or missing"),
        ({"file": "clips/b.mp4", "captions": ["push"]}, r"b\.mp4: is missing"),
        ({"file": "../clips/a.mp4", "captions": ["push"]}, "line 1: is not a clip's line"),
        ({"file": "clips/a.mp4", "captions": 3}, "line 1: is not a clip's line"),
        ({"file": "clips/a.mp4", "captions": ["push"], "actions": "../a.safetensors"}, "line 1: is not a clip's line"),
        ({"captions": ["push"]}, "line 1: is not a clip's line"),
        ({"file": "clips/a.mp4", "captions": ["push"], "task": "fly"}, "line 1: is not a clip's line"),
        ({"file": "clips/a.mp4", "captions": ["push"], "number": "0"}, "line 1: is not a clip's line"),
    ],
)
def test_bad_lines_of_a_collected_set(tmp_path: Path, line: dict[str, Any], says: str) -> None:
    clip(tmp_path / "clips" / "a.mp4")
    (tmp_path / "demos.json").write_text(json.dumps(SETTINGS))
    write_jsonl(tmp_path / "demos.jsonl", {"task": "push", "number": 0} | line)
    refused(tmp_path, says)


def test_bad_collected_sets(tmp_path: Path) -> None:
    clip(tmp_path / "clips" / "a.mp4")
    settings = tmp_path / "demos.json"
    settings.write_text(json.dumps(SETTINGS))
    refused(tmp_path, r"demos\.jsonl: is missing or damaged")
    line = {"file": "clips/a.mp4", "captions": ["push"], "task": "push", "number": 0}
    write_jsonl(tmp_path / "demos.jsonl", line, line)
    refused(tmp_path, "is listed twice")
    write_jsonl(tmp_path / "demos.jsonl")
    refused(tmp_path, "holds no clips")
    settings.write_text(json.dumps(SETTINGS | {"version": 2}))
    refused(tmp_path, "version 1")
    settings.write_text("{")
    refused(tmp_path, "not readable as JSON")
