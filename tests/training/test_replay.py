"""Sampling, relabelling and the rules at the ends of episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.training.replay import Replay
from genreward_fast.types import Latents

LENGTH = 4


def make(num_envs=2, slots=40, **changes):
    sizes = {"num_envs": num_envs, "capacity": num_envs * slots, "sequence_length": LENGTH, "context": 1}
    sizes |= {"action_size": 1, "feature_dim": 2, "deter_size": 3, "stoch_size": 2, "image_size": 2}
    return Replay(**(sizes | changes))


def fill(replay, rows, *, first=(0,), last=(), release=True, envs=None, features_later=False):
    """Appends `rows` rows whose action is their number within this call; `first` and `last` are such numbers."""
    envs = replay.config.num_envs
    numbers = []
    for row in range(rows):
        feature = torch.full((envs, replay.config.feature_dim), float(row)) if replay.config.feature_dim else None
        numbers.append(
            replay.append(
                image=torch.full((envs, 2, 2, 3), row % 256, dtype=torch.uint8),
                action=torch.full((envs, 1), float(row)),
                reward=torch.full((envs,), float(row)),
                is_first=torch.full((envs,), row in first),
                is_last=torch.full((envs,), row in last),
                is_terminal=torch.zeros(envs, dtype=torch.bool),
                feature=None if features_later else feature,
                latents=Latents(torch.full((envs, 3), float(row)), torch.full((envs, 2), row % 32, dtype=torch.uint8)),
            )
        )
        if features_later:
            replay.put_features(numbers[-1], feature)
    if release:
        replay.release(np.arange(envs), replay.index.written.copy())
    return np.array(numbers)


def drain_queue(replay):
    while replay.index.queue:
        replay.sample(1)


def test_append_numbers_rows_from_zero_for_each_environment():
    assert fill(make(), 3).tolist() == [[0, 0], [1, 1], [2, 2]]


def test_nothing_to_sample_before_a_whole_sequence_is_released():
    replay = make()
    fill(replay, LENGTH + 1, release=False)
    assert not replay.can_sample()
    with pytest.raises(RuntimeError, match="can_sample"):
        replay.sample(1)
    replay.release(0, LENGTH)
    assert not replay.can_sample()
    replay.release(0, LENGTH + 1)
    assert replay.can_sample()
    assert len(replay) == LENGTH + 1
    assert replay.sample(2).action[:, :, 0].tolist() == [[0, 1, 2, 3, 4]] * 2


def test_release_never_moves_back_nor_beyond_what_is_written():
    replay = make()
    fill(replay, 6, release=False)
    replay.release(np.array([0, 1]), np.array([4, 99]))
    replay.release(0, 1)
    assert replay.index.released.tolist() == [4, 6]


def test_fresh_stretches_come_first_once_and_tile_the_rows():
    replay = make()
    fill(replay, 3 * LENGTH + 1)
    batch = replay.sample(6)
    starts = batch.action[:, 0, 0].int().tolist()
    assert starts == [0, 4, 8, 0, 4, 8]
    assert sorted(batch.index[:, 0].tolist()) == [0, 4, 8, 40, 44, 48]
    # Behind the context row, every row is there exactly once.
    assert sorted(batch.index[:, 1:].flatten().tolist()) == [e * 40 + r for e in (0, 1) for r in range(1, 13)]
    assert not replay.index.queue


def test_fresh_stretches_that_were_overwritten_are_left_out():
    replay = make(num_envs=1, slots=10)
    fill(replay, 35)
    start = replay.sample(1).action[0, 0, 0].item()
    assert start == 28  # the first multiple of LENGTH that is not older than row 25


def test_fresh_stretches_replaced_by_a_rollback_come_again():
    replay = make(num_envs=1)
    fill(replay, 9)
    drain_queue(replay)
    assert replay.rollback(0, 6) == 6
    fill(replay, 3, first=())
    assert list(replay.index.queue) == [(0, 4)]


def test_uniform_over_all_starts_of_all_environments():
    replay = make(num_envs=3, slots=20, seed=3)
    fill(replay, 30)
    replay.rollback(1, 21)  # environments with different numbers of starts
    drain_queue(replay)
    released, oldest = replay.index.released, replay.index.oldest
    spans = released - oldest - LENGTH
    assert spans.tolist() == [16, 7, 16]
    draws = 40_000
    first = replay.draw(draws)[:, 0]
    counts = np.bincount(first, minlength=60)
    possible = [e * 20 + (oldest[e] + s) % 20 for e in range(3) for s in range(spans[e])]
    assert counts[possible].sum() == draws
    expected = draws / len(possible)
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum()
    assert chi_square < 73.4  # the 99.9% point at 38 degrees of freedom is 70.7; the seed is fixed


def test_pairs_are_uniform_over_the_rows_that_are_no_last_ones():
    replay = make(num_envs=2, slots=16, seed=1)
    fill(replay, 16, first=(0, 5, 10), last=(4, 9))
    draws = 26_000
    index = replay.index.draw_pairs(draws)
    counts = np.bincount(index[:, 0], minlength=32)
    possible = [e * 16 + r for e in range(2) for r in range(15) if r not in (4, 9)]
    assert len(possible) == 26
    assert counts[possible].sum() == draws
    chi_square = ((counts[possible] - 1000) ** 2 / 1000).sum()
    assert chi_square < 52.6  # 99.9% at 25 degrees of freedom
    assert (index[:, 1] == index[:, 0] + 1).all()


def test_pairs_are_found_where_they_are_rare():
    replay = make(num_envs=1, slots=200)
    fill(replay, 200, first=range(200), last=[r for r in range(200) if r != 117])
    replay.store.arrays["flags"][118, 0] = False
    replay.index.is_last[0, 117] = False
    assert replay.can_sample_pairs()
    assert replay.sample_pairs(3).action[:, :, 0].tolist() == [[117, 118]] * 3


def test_pairs_need_features():
    replay = make(feature_dim=0)
    fill(replay, 10)
    assert not replay.can_sample_pairs()
    assert replay.sample(1).feature is None
    with pytest.raises(ValueError, match="no features"):
        replay.sample_pairs(1)


def test_rows_that_wait_for_their_reward_are_never_sampled():
    replay = make(num_envs=2, slots=30)
    fill(replay, 50, release=False)
    replay.release(0, 33)
    replay.release(1, 25)
    batch = replay.sample(200)
    assert set(batch.index[:, 0].div(30, rounding_mode="floor").tolist()) <= {0, 1}
    for env, released in ((0, 33), (1, 25)):
        rows = batch.action[batch.index[:, 0] // 30 == env]
        assert rows.max() == released - 1
        assert rows.min() == 20


def test_a_beginning_closes_the_episode_before_it():
    replay = make(num_envs=1)
    fill(replay, 8, first=(0, 3, 6), last=(5,))
    batch = replay.gather(torch.arange(8)[None])
    assert batch.is_last[0].tolist() == [False, False, True, False, False, True, False, False]
    assert batch.is_first[0].tolist() == [True, False, False, True, False, False, True, False]
    assert not batch.is_terminal.any()


def test_relabel_adds_to_several_environments_at_once():
    replay = make()
    fill(replay, 6, release=False)
    replay.relabel(np.array([0, 1]), np.array([1, 3]), torch.tensor([[10.0, 20.0], [30.0, 40.0]]))
    replay.relabel(0, 2, torch.tensor([100.0]))
    reward = replay.store.arrays["reward"].view(2, 40)
    assert reward[0, :6].tolist() == [0, 11, 122, 3, 4, 5]
    assert reward[1, :6].tolist() == [0, 1, 2, 33, 44, 5]


def test_relabel_adds_twice_where_stretches_overlap():
    replay = make(num_envs=1)
    fill(replay, 6, release=False)
    replay.relabel(np.array([0, 0]), np.array([1, 2]), torch.ones(2, 2))
    assert replay.store.arrays["reward"][:6].tolist() == [0, 2, 4, 4, 4, 5]


def test_relabel_skips_rows_that_are_overwritten_released_or_not_written():
    replay = make(num_envs=1, slots=10)
    fill(replay, 14, release=False)
    before = replay.store.arrays["reward"].clone()
    replay.relabel(0, 0, torch.ones(4))  # rows 0 to 3 were overwritten by 10 to 13
    replay.relabel(0, 14, torch.ones(3))
    assert torch.equal(replay.store.arrays["reward"], before)
    replay.release(0, 12)
    replay.relabel(0, 10, torch.ones(9))
    assert (replay.store.arrays["reward"] - before).tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0]


def test_relabel_does_not_hit_the_successors_of_discarded_rows():
    replay = make(num_envs=1)
    fill(replay, 8, release=False)
    generation = replay.generation(0)
    replay.rollback(0, 5)
    fill(replay, 3, release=False)
    replay.relabel(0, 3, torch.full((5,), 100.0), generation)
    assert replay.store.arrays["reward"][:8].tolist() == [0, 1, 2, 103, 104, 0, 1, 2]
    replay.relabel(0, 3, torch.full((5,), 100.0), replay.generation(0))
    assert replay.store.arrays["reward"][:8].tolist() == [0, 1, 2, 203, 204, 100, 101, 102]


def test_rows_returns_what_was_stored_across_the_end_of_the_ring():
    replay = make(num_envs=2, slots=10)
    fill(replay, 13, release=False)
    feature, action, reward = replay.rows(np.array([0, 1]), np.array([8, 6]), 5)
    assert feature.shape == (2, 5, 2)
    assert action[:, :, 0].tolist() == [[8, 9, 10, 11, 12], [6, 7, 8, 9, 10]]
    assert reward.tolist() == action[:, :, 0].tolist()
    for start in (2, 9):
        with pytest.raises(ValueError, match="not all in the replay"):
            replay.rows(np.array([0]), np.array([start]), 5)


def test_rollback_never_goes_behind_what_is_overwritten():
    replay = make(num_envs=1, slots=10)
    fill(replay, 25)
    assert replay.rollback(0, 3) == 15
    assert len(replay) == 0
    assert fill(replay, 1).item() == 15


def test_written_back_latents_come_with_the_next_sample():
    replay = make(num_envs=1, deter_dtype="float32")
    fill(replay, LENGTH + 1)
    batch = replay.sample(1)
    latents = Latents(torch.randn(1, LENGTH, 3), torch.randint(0, 32, (1, LENGTH, 2), dtype=torch.uint8))
    replay.write_back(batch.index[:, 1:], latents)
    again = replay.sample(1)
    assert torch.equal(again.deter[:, 1:], latents.deter)
    assert torch.equal(again.stoch[:, 1:], latents.stoch)
    assert torch.equal(again.deter[:, 0], batch.deter[:, 0])


def test_the_last_of_several_latents_for_one_row_is_kept():
    replay = make(num_envs=1, deter_dtype="float32")
    fill(replay, 10)
    index = torch.tensor([[3, 4], [4, 3], [3, 5]])
    deter = torch.arange(6.0).view(3, 2, 1).expand(3, 2, 3)
    replay.write_back(index, Latents(deter, deter[..., :2].to(torch.uint8)))
    assert replay.store.arrays["deter"][3:6, 0].tolist() == [4, 2, 5]
    assert replay.store.arrays["stoch"][3:6, 0].tolist() == [4, 2, 5]


def test_equal_seeds_draw_equal_batches():
    first, second, other = (make(seed=seed) for seed in (5, 5, 6))
    for replay in (first, second, other):
        fill(replay, 30)
        drain_queue(replay)
    drawn = [replay.draw(20) for replay in (first, second, other)]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()


def test_no_context_gives_sequences_of_the_trained_rows_alone():
    replay = make(num_envs=1, context=0)
    fill(replay, 8)
    assert replay.sample(2).action[:, :, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_too_small_a_capacity_names_the_least():
    with pytest.raises(UserError, match=r"9 rows is too small for 2 environments: set its capacity to at least 10"):
        make(num_envs=2, capacity=9)
    with pytest.raises(UserError, match="at least 30"):
        make(num_envs=2, capacity=29, withheld=10)


@pytest.mark.parametrize(
    ("name", "value"), [("num_envs", 0), ("capacity", -1), ("sequence_length", 1), ("context", -1), ("action_size", 0)]
)
def test_nonsense_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=name):
        make(**{name: value})


def test_an_unknown_dtype_is_refused():
    with pytest.raises(UserError, match="deter_dtype must be one of bfloat16, float16, float32, not int8"):
        make(deter_dtype="int8")


def test_a_wrong_shape_is_refused_before_anything_is_counted():
    replay = make(num_envs=2)
    row = {
        "image": torch.zeros(2, 2, 2, 3, dtype=torch.uint8),
        "action": torch.zeros(2, 1),
        "reward": torch.zeros(2),
        "is_first": torch.ones(2, dtype=torch.bool),
        "is_last": torch.zeros(2, dtype=torch.bool),
        "is_terminal": torch.zeros(2, dtype=torch.bool),
        "feature": torch.zeros(2, 2),
        "latents": Latents(torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.uint8)),
    }
    for change in ({"action": torch.zeros(2, 3)}, {"feature": torch.zeros(2, 3)}, {"image": torch.zeros(2, 2, 2, 3)}):
        with pytest.raises(ValueError, match=r"action|feature|uint8"):
            replay.append(**(row | change))
    assert replay.index.written.tolist() == [0, 0]
    assert replay.append(**row).tolist() == [0, 0]


def test_features_can_be_put_later():
    first, second = make(num_envs=2), make(num_envs=2)
    fill(first, 12)
    fill(second, 12, features_later=True)
    for env in range(2):
        both = [replay.rows(np.array([env]), np.zeros(1, int), 12) for replay in (first, second)]
        assert torch.equal(both[0][0], both[1][0])
        assert both[0][0].unique().numel() > 6
    with pytest.raises(ValueError, match="feature"):
        second.put_features(np.array([11, 11]), torch.zeros(2, 7))
