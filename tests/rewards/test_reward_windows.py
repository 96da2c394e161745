import numpy as np
import pytest
import torch

from genreward_fast.rewards.windows import WindowCollector
from genreward_fast.types import FrameSpec


def frame(env: int, episode: int, row: int) -> torch.Tensor:
    return torch.full((2, 2, 3), 50 * env + 20 * episode + row, dtype=torch.uint8)


def run(spec: FrameSpec, lengths: list[list[int]]) -> list[tuple]:
    """Plays episodes of these lengths per environment; checks every window that closes, and returns which did."""
    collector = WindowCollector(spec, len(lengths), 1, "cpu")
    episode = [0] * len(lengths)
    closed = []
    for _ in range(max(sum(each) for each in lengths)):
        envs = np.asarray([env for env, each in enumerate(lengths) if episode[env] < len(each)])
        rows = collector.row[envs].copy()
        values = torch.tensor([1000.0 * env + 100 * episode[env] + row for env, row in zip(envs, rows)])
        features, clips = collector.wanted(envs)
        collector.observe_features(features, values[:, None])
        collector.observe_clip_frames(
            clips, torch.stack([frame(env, episode[env], collector.row[env]) for env in clips]) if len(clips) else []
        )
        for group in collector.complete(envs, values[:, None] + 0.25, values + 0.5):
            for index, env in enumerate(group.envs):
                end, window = int(collector.row[env]), group.window
                span = torch.arange(end - spec.window, end) + 1000.0 * env + 100 * episode[env]
                assert torch.equal(window.features[index, :, 0], span)
                assert torch.equal(window.action[index, :, 0], span + 0.25)
                assert torch.equal(window.env_reward[index], span + 0.5)
                expected = [frame(env, episode[env], end - spec.window + step) for step in spec.clip_steps]
                assert torch.equal(window.clip[index], torch.stack(expected))
                closed.append((int(env), episode[env], end, window.fresh))
        for env in envs:
            if collector.row[env] == lengths[env][episode[env]]:
                episode[env] += 1
                collector.begin(np.asarray([env]))
    return sorted(closed)


def spec(interval: int) -> FrameSpec:
    return FrameSpec(window=4, interval=interval, feature_size=2, feature_dim=1, clip_size=2, clip_steps=(0, 1, 3))


def test_windows_side_by_side():
    assert run(spec(4), [[9, 4], [3, 8]]) == [(0, 0, 4, 4), (0, 0, 8, 4), (0, 1, 4, 4), (1, 1, 4, 4), (1, 1, 8, 4)]


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (2, [(0, 0, 4, 4), (0, 0, 6, 2), (0, 0, 8, 2)]),
        (3, [(0, 0, 4, 4), (0, 0, 7, 3)]),
        (1, [(0, 0, 4, 4), *((0, 0, end, 1) for end in range(5, 9))]),
        (6, [(0, 0, 4, 4)]),
        (5, [(0, 0, 4, 4)]),
    ],
)
def test_windows_that_overlap_or_leave_gaps(interval, expected):
    assert run(spec(interval), [[8]]) == expected


def test_a_gap_between_windows():
    assert run(spec(6), [[10]]) == [(0, 0, 4, 4), (0, 0, 10, 4)]


@pytest.mark.parametrize("interval", [1, 2, 3, 4, 6])
def test_every_row_of_an_episode_is_fresh_at_most_once(interval):
    paid = np.zeros(23, int)
    for _, _, end, fresh in run(spec(interval), [[23]]):
        paid[end - fresh : end] += 1
    assert paid.max() == 1
    covered = [row for row in range(23) if spec(interval).clip_frame_at(row)]
    assert paid[covered[0] : 4].all()


def test_frames_that_no_window_needs_are_dropped():
    collector = WindowCollector(spec(2), 1, 1, "cpu")
    env = np.zeros(1, np.int64)
    for row in range(40):
        _, clips = collector.wanted(env)
        collector.observe_clip_frames(clips, [frame(0, 0, row)] * len(clips))
        collector.observe_features(env, torch.zeros(1, 1))
        collector.complete(env, torch.zeros(1, 1), torch.zeros(1))
        assert len(collector._clip_frames[0]) <= 4


def test_without_a_window_nothing_is_wanted():
    collector = WindowCollector(FrameSpec(), 2, 1, "cpu")
    envs = np.arange(2)
    assert [len(wanted) for wanted in collector.wanted(envs)] == [0, 0]
    assert collector.complete(envs, torch.zeros(2, 1), torch.zeros(2)) == []
    assert collector.row.tolist() == [1, 1]


@pytest.mark.gpu
def test_on_a_gpu_the_same_windows_without_a_wait():
    here, there = (WindowCollector(spec(4), 3, 2, device) for device in ("cpu", "cuda"))
    envs = np.arange(3)
    for row in range(8):
        features, action, env_reward = torch.randn(3, 1), torch.randn(3, 2), torch.randn(3)
        frames = torch.randint(0, 256, (3, 2, 2, 3), dtype=torch.uint8)
        on_device = features.cuda(), frames.cuda(), action.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            there.observe_features(envs, on_device[0])
            there.observe_clip_frames(there.wanted(envs)[1], on_device[1])
            found = there.complete(envs, on_device[2], env_reward)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        here.observe_features(envs, features)
        here.observe_clip_frames(here.wanted(envs)[1], frames)
        expected = here.complete(envs, action, env_reward)
        assert len(found) == len(expected) == (row % 4 == 3)
        for ours, theirs in zip(found, expected):
            for name in ("clip", "features", "action", "env_reward"):
                assert torch.equal(getattr(ours.window, name).cpu(), getattr(theirs.window, name)), name
