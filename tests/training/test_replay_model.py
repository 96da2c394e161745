"""Random operations on the replay, compared with a slow model that keeps every row in a dictionary."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from genreward_fast.training.replay import Replay
from genreward_fast.types import Latents

ENVS, SLOTS, LENGTH, CONTEXT = 3, 22, 4, 1
SPAN = LENGTH + CONTEXT


def make_replay(seed=0, **changes):
    sizes = {"num_envs": ENVS, "capacity": ENVS * SLOTS, "sequence_length": LENGTH, "context": CONTEXT}
    sizes |= {"action_size": 2, "feature_dim": 3, "deter_size": 2, "stoch_size": 2, "image_size": 2}
    return Replay(**(sizes | {"deter_dtype": "float32", "seed": seed} | changes))


def append_tokens(replay, tokens, reward, first, last):
    """One row per environment in which every field tells the row's token."""
    tokens = torch.as_tensor(tokens)
    count = len(tokens)
    wide = tokens.float()[:, None]
    return replay.append(
        image=(tokens % 251).to(torch.uint8)[:, None, None, None].expand(count, 2, 2, 3),
        action=wide.expand(count, 2),
        reward=torch.as_tensor(reward, dtype=torch.float32),
        is_first=torch.as_tensor(first),
        is_last=torch.as_tensor(last),
        is_terminal=torch.zeros(count, dtype=torch.bool),
        feature=(wide % 2048).expand(count, 3),
        latents=Latents(wide.expand(count, 2), (tokens % 241).to(torch.uint8)[:, None].expand(count, 2)),
    )


class Model:
    """What the replay should hold, written for clearness alone."""

    def __init__(self):
        self.rows = [{} for _ in range(ENVS)]  # number -> [token, reward, is_first, is_last]
        self.written = [0] * ENVS
        self.released = [0] * ENVS
        self.oldest = [0] * ENVS
        self.saved = [0] * ENVS
        self.handed = [set() for _ in range(ENVS)]  # starts of stretches that were sampled as fresh ones

    def append(self, env, token, reward, first, last):
        row = self.written[env]
        if first and row - 1 >= self.oldest[env] and row > 0:
            self.rows[env][row - 1][3] = True
        self.rows[env][row] = [token, reward, first, last]
        self.written[env] += 1
        self.oldest[env] = max(self.oldest[env], self.written[env] - SLOTS)

    def rollback(self, env, row):
        row = max(row, self.saved[env], self.oldest[env])
        if row < self.written[env]:
            self.written[env] = row
            self.released[env] = min(self.released[env], row)
            self.handed[env] = {start for start in self.handed[env] if start + SPAN <= self.released[env]}

    def due(self):
        return {
            (env, start)
            for env in range(ENVS)
            for start in range(0, self.written[env], LENGTH)
            if start >= self.oldest[env] and start + SPAN <= self.released[env] and start not in self.handed[env]
        }

    def starts(self):
        return {(e, s) for e in range(ENVS) for s in range(self.oldest[e], self.released[e] - SPAN + 1)}

    def resumed(self):
        model = copy.deepcopy(self)
        model.released = [max(r, o) for r, o in zip(self.released, self.oldest)]
        model.written, model.saved = list(model.released), list(model.released)
        return model


def check_sample(replay, model, batch):
    due, starts = model.due(), model.starts()
    sample = replay.sample(batch)
    assert sample.image.shape == (batch, SPAN, 2, 2, 3)
    assert sample.deter.shape == (batch, SPAN, 2)
    found = []
    for b in range(batch):
        env = int(sample.index[b, 0]) // SLOTS
        token = int(sample.action[b, 0, 0])
        start = next(n for n, row in model.rows[env].items() if row[0] == token and n < model.written[env])
        assert (env, start) in starts
        found.append((env, start))
        for t in range(SPAN):
            expected, reward, first, last = model.rows[env][start + t]
            assert sample.action[b, t].tolist() == [expected] * 2
            assert sample.deter[b, t].tolist() == [expected] * 2
            assert sample.feature[b, t].tolist() == [expected % 2048] * 3
            assert sample.stoch[b, t].tolist() == [expected % 241] * 2
            assert sample.image[b, t].flatten().tolist() == [expected % 251] * 12
            assert sample.reward[b, t].item() == pytest.approx(reward)
            assert (bool(sample.is_first[b, t]), bool(sample.is_last[b, t])) == (first, last)
            assert int(sample.index[b, t]) == env * SLOTS + (start + t) % SLOTS
    fresh = found[: min(batch, len(due))]
    assert len(set(fresh)) == len(fresh)
    assert set(fresh) <= due
    for env, start in fresh:
        model.handed[env].add(start)
    replay.write_back(sample.index, Latents(sample.deter, sample.stoch))


def check_pairs(replay, model, count):
    possible = {
        (model.rows[e][r][0], model.rows[e][r + 1][0])
        for e in range(ENVS)
        for r in range(model.oldest[e], model.released[e] - 1)
        if not model.rows[e][r][3]
    }
    assert replay.can_sample_pairs() == bool(possible)
    if not possible:
        with pytest.raises(RuntimeError, match="pair"):
            replay.sample_pairs(count)
        return
    pairs = replay.sample_pairs(count)
    assert pairs.image is None
    assert pairs.deter is None
    assert pairs.feature.shape == (count, 2, 3)
    assert not pairs.is_last[:, 0].any()
    assert not pairs.is_first[:, 1].any()
    assert {tuple(pair) for pair in pairs.action[:, :, 0].int().tolist()} <= possible


@pytest.mark.parametrize("seed", range(6))
def test_random_operations_agree_with_the_model(seed, tmp_path):
    rng = np.random.default_rng(seed)
    replay, model = make_replay(seed, chunk_bytes=600), Model()
    state, stored = None, None
    begin = np.ones(ENVS, bool)
    token, sampled, resumed = 0, 0, 0
    for _ in range(900):
        operation = rng.choice(
            ["append", "release", "relabel", "sample", "pairs", "rollback", "save", "load"],
            p=[0.53, 0.22, 0.08, 0.09, 0.03, 0.01, 0.03, 0.01],
        )
        env = int(rng.integers(ENVS))
        if operation == "append":
            last = ~begin & (rng.random(ENVS) < 0.1)
            reward = rng.integers(0, 9, ENVS)
            tokens = np.arange(token, token + ENVS)
            token += ENVS
            expected = list(model.written)
            rows = append_tokens(replay, tokens, reward, begin, last)
            assert rows.tolist() == expected
            for e in range(ENVS):
                model.append(e, int(tokens[e]), float(reward[e]), bool(begin[e]), bool(last[e]))
            begin = last
        elif operation == "release":
            upto = model.released[env] + int(rng.integers(-2, 14))
            replay.release(env, upto)
            model.released[env] = max(model.released[env], min(upto, model.written[env]))
        elif operation == "relabel":
            start, count = model.written[env] + int(rng.integers(-30, 5)), int(rng.integers(1, 8))
            values = rng.integers(1, 9, count).astype(np.float32)
            replay.relabel(env, start, torch.from_numpy(values))
            for n, value in enumerate(values, start):
                if max(model.oldest[env], model.released[env]) <= n < model.written[env]:
                    model.rows[env][n][1] += float(value)
        elif operation == "sample":
            assert replay.can_sample() == bool(model.starts())
            if model.starts():
                check_sample(replay, model, int(rng.integers(1, 6)))
                sampled += 1
        elif operation == "pairs":
            check_pairs(replay, model, 5)
        elif operation == "rollback":
            row = model.written[env] - int(rng.integers(0, 12))
            model.rollback(env, row)
            assert replay.rollback(env, row) == model.written[env]
            begin[env] = True
        elif operation == "save":
            state = json.loads(json.dumps(replay.save(tmp_path)))
            model.saved = [max(s, r) for s, r in zip(model.saved, model.released)]
            replay.commit(tmp_path)
            stored = copy.deepcopy(model)
        elif operation == "load" and state is not None:
            replay, model = make_replay(seed + 100, chunk_bytes=600), stored.resumed()
            replay.load(tmp_path, state)
            begin[:] = True
            resumed += 1
        assert len(replay) == sum(max(0, r - o) for r, o in zip(model.released, model.oldest))
        assert replay.index.written.tolist() == model.written
        assert replay.index.released.tolist() == model.released
        assert replay.index.oldest.tolist() == model.oldest
    assert min(model.written) > 2 * SLOTS
    assert sampled > 20
    assert resumed > 1
