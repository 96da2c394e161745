"""The table of what the weights show."""

import dataclasses

import pytest
import torch

from genreward_fast.encoders.architectures import build_vae
from genreward_fast.errors import UserError
from genreward_fast.files import read_json, write_json
from genreward_fast.goals.assets.check import ASKED, auc, check, video_ranking
from genreward_fast.goals.assets.recordings import Episode, Recordings

CPU = torch.device("cpu")


def test_auc_counts_pairs():
    assert auc(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0])) == (3 + 0.5) / 4
    assert auc(torch.tensor([0.0]), torch.tensor([1.0])) == 0.0


@pytest.fixture
def pick_place():
    """Expert episodes that all show one clip, half-experts that show half of it, and random ones that show noise."""
    generator = torch.Generator().manual_seed(0)
    shown = torch.randint(256, (16, 16, 16, 3), dtype=torch.uint8, generator=generator)
    clips, episodes = [], []
    for kind, held in (("expert", False), ("expert", True), ("half-expert", True), ("random", True)):
        clip = torch.randint(256, shown.shape, dtype=torch.uint8, generator=generator)
        if kind != "random":
            clip[: 16 if kind == "expert" else 8] = shown[: 16 if kind == "expert" else 8]
        episodes.append(Episode("pick-place", kind, held, 16 * len(clips), 16, 15 if kind == "expert" else None))
        clips.append(clip)
    frames = torch.cat(clips)
    return Recordings({16: frames}, torch.zeros(len(frames), 39), tuple(episodes))


def test_windows_like_the_goal_rank_above_those_that_are_half_like_it(toy, pick_place):
    folder, _ = toy
    build_vae("tiny", 0).save_pretrained(folder.weights("vae"))
    ranking = video_ranking(pick_place, folder, every=2)
    names = ("expert_over_half", "half_over_random", "expert_over_random")
    assert {name: ranking["pick-place"][name] for name in names} == dict.fromkeys(names, 1.0)
    assert all(0 <= ranking["pick-place"][f"centred_{name}"] <= 1 for name in names)
    backwards = dataclasses.replace(pick_place, frames={16: pick_place.frames[16].flip(0)})
    assert video_ranking(backwards, folder, every=2) != ranking


def test_the_table_says_what_was_asked_and_what_came_of_it(toy):
    folder, config = toy
    with pytest.raises(UserError, match="not there yet"):
        check(folder, config, CPU)
    values = {name: float(number) for number, (_, name, _, _) in enumerate(ASKED)}
    for part in ("vae", "dino", "clip", "generator"):
        write_json(folder.measured(part), {"measured": values})
    build_vae("tiny", 0).half().save_pretrained(folder.weights("vae"))
    clip = folder.measured("clip").rename(folder.root / "clip.json")
    lines = check(folder, dataclasses.replace(config, sizes=(16,)), CPU)
    assert "MISSING  clip: build it with --parts clip" in lines
    assert len(read_json(folder.measured("assets"))["table"]) == len(ASKED) + 1 - 2  # the figures of CLIP
    clip.rename(folder.measured("clip"))
    lines = check(folder, dataclasses.replace(config, sizes=(16,)), CPU)
    written = read_json(folder.measured("assets"))
    assert len(lines) == len(written["table"]) == len(ASKED) + 1
    assert "pick-place" in written["table"][-1]["what"]
    assert [row["value"] for row in written["table"][:-1]] == [float(number) for number in range(len(ASKED))]
    assert [line.split()[0] for line in lines[:4]] == ["NOT", "NOT", "met", "met"]
    assert 2.5e6 < written["bytes"]["vae"] < 4e6
    with pytest.raises(UserError, match="no recordings of the paper's tasks"):
        check(folder, dataclasses.replace(config, tasks=("reach",)), CPU)
