from __future__ import annotations

import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.training.unipi.inverse_dynamics import FittedDynamics
from genreward_fast.training.unipi.plan import actions_of_video, frames_and_gaps
from genreward_fast.training.unipi.planner import Planner
from genreward_fast.training.unipi.videos import GivenVideo
from genreward_fast.types import EnvStep


def seen(rows, frames=None, last=()):
    """A tick of environments that are at `rows` of their episodes."""
    count = len(rows)
    return EnvStep(
        frames={} if frames is None else {frames.shape[1]: frames},
        reward=torch.zeros(count),
        success=torch.zeros(count, dtype=torch.bool),
        is_first=torch.tensor(rows) == 0,
        is_last=torch.tensor([env in last for env in range(count)]),
        is_terminal=torch.zeros(count, dtype=torch.bool),
        discarded=torch.zeros(count, dtype=torch.bool),
        row=torch.tensor(rows),
    )


class Videos:
    """Videos that stay at the picture they begin with; what was asked for is kept."""

    frame_size = 24

    def __init__(self, length=5):
        self.length, self.calls = length, []

    def __call__(self, frame, seed):
        self.calls.append((frame.clone(), seed))
        return frame.expand(self.length, -1, -1, -1).contiguous()


@pytest.fixture(scope="module")
def dynamics(toy_fit):
    return FittedDynamics.load(toy_fit.folder).network


@pytest.mark.parametrize(
    ("frames", "steps", "chosen", "gaps"),
    [
        (4, 3, [0, 1, 2, 3], [1, 1, 1]),
        (4, 9, [0, 1, 2, 3], [3, 3, 3]),
        (4, 8, [0, 1, 2, 3], [3, 2, 3]),
        (9, 4, [0, 2, 4, 6, 8], [1, 1, 1, 1]),
        (2, 4, [0, 1], [4]),
        (49, 1, [0, 48], [1]),
    ],
)
def test_frames_and_gaps(frames, steps, chosen, gaps):
    assert frames_and_gaps(frames, steps, 4) == (chosen, gaps)


def test_every_plan_spans_its_video_and_its_steps():
    for frames in range(2, 60):
        for steps in range(1, 4 * (frames - 1) + 1):
            chosen, gaps = frames_and_gaps(frames, steps, 4)
            assert (chosen[0], chosen[-1], sum(gaps)) == (0, frames - 1, steps)
            assert min(gaps) >= 1
            assert chosen == sorted(set(chosen))


@pytest.mark.parametrize("hold", [1, 3])
def test_following_a_video_repeats_what_was_done_in_it(dynamics, toy_play, toy_world, fresh_generator, hold):
    """The video shows every `hold`-th picture of an episode; the planner finds the actions and ends where it ended."""
    errors, away, moved = [], [], []
    for _ in range(8):
        start = fresh_generator.get_state()
        pictures, actions = toy_play(18, fresh_generator, hold)
        after = fresh_generator.get_state()
        world = toy_world(fresh_generator.set_state(start))  # begins like that episode
        assert torch.equal(world.picture(), pictures[0])
        planner = Planner(dynamics, GivenVideo(pictures[::hold]), steps=18)
        assert planner.sizes == planner.sizes_at(0) == ()
        for row in range(18):
            action = planner.act(seen([row]))[0]
            errors.append((action - actions[row]).square().mean())
            world.step(action)
        away.append((world.picture().float() - pictures[-1].float()).abs().mean())
        moved.append((pictures[0].float() - pictures[-1].float()).abs().mean())
        fresh_generator.set_state(after)
    assert torch.stack(errors).mean().sqrt() < 0.1
    assert torch.stack(away).mean() < 12  # of 255 levels, after 18 steps of up to 20 each
    assert torch.stack(away).mean() < 0.5 * torch.stack(moved).mean()


def test_after_the_plan_the_hand_stays(dynamics, toy_play):
    pictures, _ = toy_play(6, torch.Generator().manual_seed(3))
    planner = Planner(dynamics, GivenVideo(pictures), steps=6)
    actions = [planner.act(seen([row]))[0] for row in range(9)]
    assert actions[5].abs().max() > 0.05
    for action in actions[6:]:
        assert torch.equal(action, torch.tensor([0.0, 0.0, 0.0, float(actions[5][3])]))
    again = planner.act(seen([0]))[0]  # a new episode begins the plan anew
    assert torch.equal(again, actions[0])


@pytest.mark.parametrize("replan", [None, 2, 4])
def test_plans_begin_where_they_should_from_what_is_seen_there(dynamics, replan):
    videos = Videos()
    planner = Planner(dynamics, videos, steps=4, replan=replan)
    pictures = torch.arange(7, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 24, 24, 3) * 30
    begins = [row for row in range(7) if row == 0 or (replan and row % replan == 0)]
    assert [row for row in range(7) if planner.sizes_at(row) == (24,)] == begins
    assert all(planner.sizes_at(row) == () for row in range(7) if row not in begins)
    for row in range(7):
        # Where nothing is rendered, memory holds pictures of earlier rows: they must not be looked at.
        planner.act(seen([row], pictures[row : row + 1] if row in begins else None))
    assert [int(frame[0, 0, 0]) for frame, _ in videos.calls] == [30 * row for row in begins]
    assert len({seed for _, seed in videos.calls}) == len(begins)
    assert int(planner.first_video[0, 0, 0, 0]) == 0


def test_environments_have_plans_of_their_own(dynamics, toy_play):
    both = [toy_play(4, torch.Generator().manual_seed(seed))[0] for seed in (0, 1)]

    class Known(Videos):
        def __call__(self, frame, seed):
            super().__call__(frame, seed)
            return next(pictures for pictures in both if torch.equal(pictures[0], frame))

    videos = Known()
    planner = Planner(dynamics, videos, steps=4, replan=4)
    frames = torch.stack([pictures[0] for pictures in both])
    wanted = [actions_of_video(dynamics, pictures, 4) for pictures in both]
    assert not torch.allclose(wanted[0], wanted[1], atol=0.1)
    for row in range(4):
        assert torch.equal(planner.act(seen([row, row], frames)), torch.stack([each[row] for each in wanted]))
    assert len(videos.calls) == 2
    # The first one's episode ends on a row where a plan would begin: none is made. The second one's worker died.
    planner.act(seen([4, 0], frames, last=(0,)))
    assert len(videos.calls) == 3
    assert torch.equal(videos.calls[2][0], both[1][0])


def test_the_same_seed_asks_for_the_same_videos(dynamics):
    asked = []
    for seed in (0, 0, 1):
        videos = Videos()
        planner = Planner(dynamics, videos, steps=4, replan=1, seed=seed)
        for row in range(3):
            planner.act(seen([row], torch.zeros(1, 24, 24, 3, dtype=torch.uint8)))
        asked.append([number for _, number in videos.calls])
    assert asked[0] == asked[1] != asked[2]


def test_videos_that_cannot_be_followed(dynamics):
    video = torch.zeros(4, 24, 36, 3, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"24x36.*24x24.*--size"):
        actions_of_video(dynamics, video, 3)
    with pytest.raises(UserError, match=r"--plan-steps 13: 4 frames leave gaps of up to 5 steps.* know 4"):
        actions_of_video(dynamics, video[:, :, :24], 13)
    assert actions_of_video(dynamics, video[:, :, :24], 12).shape == (12, 4)
