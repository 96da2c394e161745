"""The learned measure in a gridworld, where the true one is a linear solve; and the released code's, which fails."""

import pytest
import torch
from torch import Tensor

from genreward_fast.rewards.config import FBConfig
from genreward_fast.rewards.fb import ForwardBackward
from genreward_fast.rewards.fb_losses import orthonormality_loss, successor_loss
from genreward_fast.rewards.fb_networks import BackwardNet, ForwardNet, scaled_to_sphere

SIDE, GAMMA = 5, 0.9
STATES = SIDE * SIDE
MOVES = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
CELL = torch.arange(STATES)
PLACE = torch.stack([CELL // SIDE, CELL % SIDE], dim=1)
FEATURES = torch.eye(SIDE)[PLACE].flatten(1)  # row and column, each one-hot
GOAL = STATES // 2  # the middle


def transitions() -> Tensor:
    """P[a, s, s′]: an action goes one cell, into a wall none, with probability 0.8; else nothing moves."""
    steps = torch.zeros(4, STATES, STATES, dtype=torch.float64)
    for action, move in enumerate(MOVES):
        there = (PLACE + move.long()).clamp(0, SIDE - 1)
        steps[action, CELL, there[:, 0] * SIDE + there[:, 1]] += 0.8
        steps[action, CELL, CELL] += 0.2
    return steps


def true_measure() -> Tensor:
    """[P_a (I − γ P)⁻¹](s, s′) / ρ(s′) under uniformly random actions, (4 · S, S). ρ is uniform: P is symmetric."""
    steps = transitions()
    occupancy = steps @ torch.linalg.inv(torch.eye(STATES, dtype=torch.float64) - GAMMA * steps.mean(0))
    return occupancy.flatten(0, 1) * STATES


@pytest.fixture
def draw(pairs_of):
    """Batches of the replay of uniformly random behaviour."""
    steps, generator = transitions().float(), torch.Generator().manual_seed(1)

    def batch(count):
        state = torch.randint(STATES, (count,), generator=generator)
        action = torch.randint(4, (count, 2), generator=generator)
        following = torch.multinomial(steps[action[:, 0], state], 1, generator=generator).squeeze(1)
        return pairs_of(FEATURES[torch.stack([state, following], dim=1)], MOVES[action])

    return batch


@torch.no_grad()
def learned_measure(forward_net, backward_net) -> Tensor:
    """F(s, a, z)·B(s′) for every s, a and s′, at directions z that were never trained on: (4 · S, S)."""
    z = scaled_to_sphere(torch.randn(4 * STATES, backward_net.last.out_features))
    heads = forward_net(FEATURES.repeat(4, 1), MOVES.repeat_interleave(STATES, dim=0), z)
    return heads.mean(0) @ backward_net(FEATURES).T


def trained(draw, **changes) -> ForwardBackward:
    config = {"z_dim": 24, "hidden": 96, "lr": 2e-3, "tau": 0.05, "gamma": GAMMA, "batch": 192} | changes
    fb = ForwardBackward(FBConfig(**config), FEATURES[GOAL], action_size=2, device="cpu", seed=0)
    for _ in range(1500):
        fb.update(draw(fb.config.batch))
    return fb


def test_the_learned_measure_is_the_true_one(draw, r_squared):
    fb = trained(draw)
    learned, truth = learned_measure(fb.forward_average, fb.backward_average), true_measure()
    assert r_squared(learned, truth) > 0.95
    # A density, so it must be right in size too.
    assert 0.9 < (learned.mean() / truth.mean()).item() < 1.1
    # The score at the goal is greatest where the action steps onto it: from its four neighbours.
    scores = fb.score(FEATURES.repeat(4, 1), MOVES.repeat_interleave(STATES, dim=0))
    best = {divmod(int(index), STATES) for index in scores.topk(4).indices}
    assert best == {(0, GOAL - SIDE), (1, GOAL + SIDE), (2, GOAL - 1), (3, GOAL + 1)}


@pytest.mark.slow
def test_the_minimum_over_heads_makes_it_too_small(draw, r_squared):
    """Why the heads are averaged by default: nothing is maximised over, so the minimum is a bias and no safeguard."""
    smaller = trained(draw, reduce="min")
    learned, truth = learned_measure(smaller.forward_average, smaller.backward_average), true_measure()
    assert learned.mean() < 0.9 * truth.mean()
    assert r_squared(learned, truth) < 0.95


def test_one_goal_for_all_columns_without_a_discount_learns_nothing(draw, r_squared):
    """The released code's way, kept as a counter-example: M grows by a constant a target's lifetime, whatever s is."""
    generator, d, tau = torch.Generator().manual_seed(0), 24, 0.05
    sizes = {"feature_dim": FEATURES.shape[1], "z_dim": d, "hidden": 96, "generator": generator}
    online = torch.nn.ModuleList([ForwardNet(action_size=2, heads=2, **sizes), BackwardNet(**sizes)])
    target = torch.nn.ModuleList([ForwardNet(action_size=2, heads=2, **sizes), BackwardNet(**sizes)])
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), lr=2e-3)
    goal, ones = FEATURES[GOAL].expand(128, -1), torch.ones(128)
    means = []
    for _ in range(500):
        batch = draw(128)
        z = scaled_to_sphere(torch.randn(128, d, generator=generator))
        with torch.no_grad():
            target_forward = target[0](batch.feature[:, 1], batch.action[:, 1], z)
            target_backward = target[1](goal)
        forward, backward = online[0](batch.feature[:, 0], batch.action[:, 0], z), online[1](goal)
        loss, metrics = successor_loss(forward, backward, target_forward, target_backward, ones, "min", ones)
        optimizer.zero_grad()
        (loss + orthonormality_loss(backward)[0]).backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)
        means.append(float(metrics["fb/measure"]))
    learned, truth = learned_measure(*online), true_measure()
    assert r_squared(learned, truth) < 0
    assert torch.corrcoef(torch.stack([learned.flatten().double(), truth.flatten()]))[0, 1] < 0.5
    # Without an end: it has not slowed down in the second half.
    first, second = means[250] - means[50], means[450] - means[250]
    assert second > 0.7 * first > 3
