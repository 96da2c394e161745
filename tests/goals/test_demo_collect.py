from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.envs.expert import expert_episode
from genreward_fast.envs.seeds import episode_seed
from genreward_fast.envs.tasks import TASKS
from genreward_fast.errors import Interrupted, RunFailed, UserError
from genreward_fast.goals import demo_collect
from genreward_fast.goals.captions import captions
from genreward_fast.goals.demo_collect import Collection, collect
from genreward_fast.goals.demos import read_demos
from genreward_fast.goals.video_io import read_video

SMALL = Collection(("reach",), 2, size=32)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_set(folder: Path, other: Path) -> None:
    """The same files with the same bytes; of videos, the same pictures: a renderer may differ in its last digit."""
    ours, theirs = contents(folder), contents(other)
    videos = {name for name in theirs if name.endswith(".mp4")}
    assert ours.keys() == theirs.keys()
    assert {name: ours[name] for name in ours.keys() - videos} == {name: theirs[name] for name in ours.keys() - videos}
    for name in videos:
        (shown, rate), (expected, expected_rate) = read_video(folder / name), read_video(other / name)
        assert (shown.shape, rate) == (expected.shape, expected_rate)
        assert (shown.float() - expected.float()).abs().mean() < 0.5  # of 255; two moments of a clip differ by more


def before_second_clip(monkeypatch: pytest.MonkeyPatch, do: Callable[[], None]) -> None:
    real = demo_collect.write_video

    def write(path: Path, *arguments: Any) -> None:
        if path.stem.endswith("0001"):
            do()
        real(path, *arguments)

    monkeypatch.setattr(demo_collect, "write_video", write)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of `reach`, collected in one go."""
    folder = tmp_path_factory.mktemp("demos") / "whole"
    report = collect(SMALL, folder)
    assert report == [f"{folder}: 2 clips, tasks: 1"]
    return folder


def test_clips_end_with_the_first_success(whole: Path) -> None:
    demos = read_demos(whole)
    assert len(demos) == 2
    for demo in demos:
        line = demo.details
        episode = expert_episode(EnvConfig("reach"), line["seed"], (32,))
        assert episode.first_success == line["success_step"] == line["frames"] - 2
        frames = demo.frames()
        expected = torch.from_numpy(episode.frames[32])
        assert frames.shape == expected.shape
        # The rest is compression, of colour above all: upright and in order, or this would be tens of levels.
        assert (frames.float() - expected.float()).abs().mean() < 6
        assert demo.captions == captions("reach")
        assert torch.equal(demo.actions(), torch.from_numpy(episode.actions))
        assert len(demo.actions()) == len(frames) - 1
    assert not torch.equal(demos[0].frames()[0], demos[1].frames()[0])


def test_lines_say_what_is_promised(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "demos.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["clips/reach-0000.mp4", "clips/reach-0001.mp4"]
    for line in lines:
        said = {key: line[key] for key in ("task", "fps", "size", "camera", "failed_starts")}
        assert said == {"task": "reach", "fps": 80.0, "size": 32, "camera": "corner", "failed_starts": 0}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_set_becomes_the_same_set(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    folder = tmp_path / "demos"
    handler = signal.getsignal(number)
    with monkeypatch.context() as patched:
        before_second_clip(patched, lambda: signal.raise_signal(number))
        with pytest.raises(Interrupted, match=r"after 1 clips .* --resume") as caught:
            collect(SMALL, folder)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is handler
    assert len(read_demos(folder)) == 1
    with pytest.raises(UserError, match="--resume"):
        collect(SMALL, folder)
    with open(folder / "demos.jsonl", "a") as file:
        file.write('{"file": "clips/rea')  # as a crash leaves it
    collect(SMALL, folder, resume=True)
    assert_same_set(folder, whole)


@pytest.mark.parametrize("lost", ["reach-0000.mp4", "reach-0000.safetensors"])
def test_a_lost_file_is_made_again_and_the_rest_is_kept(whole: Path, tmp_path: Path, lost: str) -> None:
    folder = tmp_path / "demos"
    shutil.copytree(whole, folder)
    kept = (folder / "clips/reach-0001.mp4").stat().st_mtime_ns
    (folder / "clips" / lost).unlink()
    collect(SMALL, folder, resume=True)
    assert_same_set(folder, whole)
    assert (folder / "clips/reach-0001.mp4").stat().st_mtime_ns == kept


@pytest.mark.slow
def test_workers_collect_the_same_set(whole: Path, tmp_path: Path) -> None:
    collect(SMALL, tmp_path / "demos", workers=2)
    assert_same_set(tmp_path / "demos", whole)


def test_failed_starts_are_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = demo_collect.expert_episode
    unlucky = {episode_seed(0, "demos", TASKS.index("reach"), start) for start in range(2)}

    def episode(config: EnvConfig, seed: int, sizes: tuple[int, ...], **options: Any) -> Any:
        result = real(config, seed, sizes, **options)
        return dataclasses.replace(result, first_success=None) if seed in unlucky else result

    monkeypatch.setattr(demo_collect, "expert_episode", episode)
    folder = tmp_path / "demos"
    report = collect(dataclasses.replace(SMALL, episodes=1), folder)
    assert report[1] == "starts given up because the expert failed from them: 2"
    assert read_demos(folder)[0].details["failed_starts"] == 2
    unlucky.update(episode_seed(0, "demos", TASKS.index("reach"), start) for start in range(10, 20))
    report = collect(SMALL, folder, resume=True)
    assert report[-1].endswith("from 10 starts: reach 1")
    assert len(read_demos(folder)) == 1


def test_a_set_without_actions_is_kept_and_says_so(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demos"
    shutil.copytree(whole, folder)
    lines = [json.loads(line) for line in (folder / "demos.jsonl").read_text().splitlines()]
    for line in lines:
        (folder / line.pop("actions")).unlink()
    (folder / "demos.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = contents(folder)
    collect(SMALL, folder, resume=True)
    assert contents(folder) == before
    with pytest.raises(UserError, match=r"reach-0000\.mp4: its actions are not recorded"):
        read_demos(folder)[0].actions()


def test_damaged_actions_are_named(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demos"
    shutil.copytree(whole, folder)
    path = folder / "clips/reach-0000.safetensors"
    demo = read_demos(folder)[0]
    for bad in (torch.full((5, 4), 2.0), torch.full((5, 4), torch.nan), torch.zeros(5), torch.zeros(5, 4).double()):
        save_file({"action": bad}, path)
        with pytest.raises(UserError, match=r"reach-0000\.safetensors: does not hold"):
            demo.actions()
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"reach-0000\.safetensors: damaged"):
        demo.actions()
    path.unlink()
    with pytest.raises(UserError, match=r"reach-0000\.safetensors: no such file"):
        demo.actions()


def test_other_settings_are_refused(whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(UserError, match="begun with size 32, not 48"):
        collect(dataclasses.replace(SMALL, size=48), whole, resume=True)
    assert contents(whole) == before


def test_no_room_left_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demos"

    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before_second_clip(monkeypatch, fail)
    with pytest.raises(RunFailed, match=r"reach-0001.mp4: cannot be written \(No space left on device\)"):
        collect(SMALL, folder)
    assert len(read_demos(folder)) == 1


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(UserError, match=r"thesis\.tex"):
            collect(SMALL, tmp_path, resume=resume)
    with pytest.raises(UserError, match="is a file"):
        collect(SMALL, tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tasks": ("fly",)}, "no such task"),
        ({"episodes": 0}, "episodes 0"),
        ({"size": 33}, "size 33"),
        ({"camera": "front"}, "camera"),
        ({"seed": -1}, "seed -1"),
        ({"fps": 0.0}, "fps 0"),
        ({"rendering": "nice"}, "rendering"),
    ],
)
def test_bad_values(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        dataclasses.replace(SMALL, **changes)


def test_no_workers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="workers 0"):
        collect(SMALL, tmp_path / "demos", workers=0)
    assert not list(tmp_path.iterdir())
