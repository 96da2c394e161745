"""The learned measure of a point mass, where the true one is a series of Gaussians; and what the actor changes."""

import functools
import math

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from genreward_fast.rewards.config import FBConfig
from genreward_fast.rewards.fb import ForwardBackward

GAMMA = 0.9
GOAL = torch.tensor([0.5, 0.0])


class PointMass:
    """A mass on a circle of length 1: v′ = 0.3 v + 0.05 a + shove·ξ, x′ = x + v′ + jitter·η, with ξ and η normal.

    Behaviour is a ~ N(0, 0.6²), so that all is Gaussian but for the wrapping. States are (x, v); their features are
    (cos 2πx, sin 2πx, v in its deviations).
    """

    friction, force, effort = 0.3, 0.05, 0.6

    def __init__(self, shove: float, jitter: float):
        self.shove, self.jitter = shove, jitter
        self.variance = (self.force * self.effort) ** 2 + shove**2  # what a step adds to v's
        self.speed = math.sqrt(self.variance / (1 - self.friction**2))  # v's deviation in the long run

    def features(self, state: Tensor) -> Tensor:
        angle = 2 * math.pi * state[..., 0]
        return torch.stack([angle.cos(), angle.sin(), state[..., 1] / self.speed], dim=-1)

    def states(self, count: int, generator: torch.Generator) -> Tensor:
        """As random behaviour visits them in the long run: (count, 2)."""
        place = torch.rand(count, generator=generator)
        return torch.stack([place, torch.randn(count, generator=generator) * self.speed], dim=1)

    def actions(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, 1, generator=generator) * self.effort

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(state.shape, generator=generator)
        speed = self.friction * state[:, 1] + self.force * action[:, 0] + self.shove * noise[:, 0]
        return torch.stack([(state[:, 0] + speed + self.jitter * noise[:, 1]) % 1, speed], dim=1)

    def measure(self, state: Tensor, action: Tensor, goal: Tensor) -> Tensor:
        """Σ_t γᵗ p(s_{t+1} = goal | s, a) / ρ(goal) for all pairs of n rows and m goals: (n, m) float64.

        Mean and covariance of each Gaussian follow from the equations of motion; wrapping sums its images one turn
        apart. From the 60th step on nothing is left of (s, a) beside what random behaviour visits anyway (1e-9 of it at
        this noise), so the rest of the series is that of ones.
        """
        state, action, goal = state.double(), action.double(), goal.double()
        both = torch.ones(2, 2, dtype=torch.float64)  # v's noise enters x by the same step
        jitter = torch.tensor([[self.jitter**2, 0.0], [0.0, 0.0]], dtype=torch.float64)
        motion = torch.tensor([[1.0, self.friction], [0.0, self.friction]], dtype=torch.float64)
        turns = torch.arange(-6.0, 7.0, dtype=torch.float64)
        speed = self.friction * state[:, 1] + self.force * action[:, 0]
        place, covariance = state[:, 0] + speed, self.shove**2 * both + jitter
        total = torch.zeros(len(state), len(goal), dtype=torch.float64)
        for t in range(60):
            away = goal[:, 0, None] + turns - place[:, None, None]
            faster = (goal[:, 1] - speed[:, None])[..., None].expand_as(away)
            a, b, c = (value.item() for value in torch.linalg.inv(covariance)[[0, 0, 1], [0, 1, 1]])
            exponent = a * away.square() + 2 * b * away * faster + c * faster.square()
            total += GAMMA**t * (-exponent / 2).exp().sum(-1) / (2 * math.pi * covariance.det().sqrt())
            speed = self.friction * speed
            place = (place + speed) % 1
            covariance = motion @ covariance @ motion.T + self.variance * both + jitter
        density = (-(goal[:, 1] / self.speed).square() / 2).exp() / (self.speed * math.sqrt(2 * math.pi))
        return total / density + GAMMA**60 / (1 - GAMMA)


@pytest.fixture
def train(pairs_of):
    """Makes FB learn from random behaviour of a point mass, in fresh states at every update."""

    @functools.cache
    def trained(world: PointMass, updates: int, seed: int = 0, **changes) -> ForwardBackward:
        config = {"z_dim": 16, "hidden": 64, "lr": 2e-3, "tau": 0.05, "gamma": GAMMA, "batch": 256} | changes
        fb = ForwardBackward(FBConfig(**config), world.features(GOAL), action_size=1, device="cpu", seed=seed)
        generator = torch.Generator().manual_seed(100 + seed)
        for _ in range(updates):
            state = world.states(256, generator)
            action = torch.stack([world.actions(256, generator) for _ in range(2)], dim=1)
            rows = torch.stack([state, world.step(state, action[:, 0], generator)], dim=1)
            fb.update(pairs_of(world.features(rows), action))
        return fb

    return trained


def test_the_series_is_a_density(fresh_generator):
    """Its mean over goals as ρ has them is 1 / (1 − γ) for every (s, a): ρ cancels, probabilities add up to 1."""
    world = PointMass(shove=0.06, jitter=0.1)
    state, action = world.states(2, fresh_generator).clamp(-0.1, 1), world.actions(2, fresh_generator).clamp(-1, 1)
    mean = world.measure(state, action, world.states(5000, fresh_generator)).mean(1)
    torch.testing.assert_close(mean, torch.full_like(mean, 1 / (1 - GAMMA)), rtol=0.1, atol=0)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_the_learned_measure_is_the_true_one_in_states_never_seen(train, r_squared, seed):
    world, generator = PointMass(shove=0.06, jitter=0.1), torch.Generator().manual_seed(2)
    fb = train(world, 4000, seed, z_dim=20, hidden=96, lr=4e-3)
    state, goal = world.states(200, generator), world.states(200, generator)
    action = world.actions(200, generator)
    with torch.no_grad():
        z = fb.sample_z(world.features(goal))
        learned, noisy = (
            forward_net(world.features(state), action, z).mean(0) @ backward_net(world.features(goal)).T
            for forward_net, backward_net in (
                (fb.forward_average, fb.backward_average),
                (fb.forward_net, fb.backward_net),
            )
        )
    truth = world.measure(state, action, goal)
    assert r_squared(learned, truth) >= 0.95
    assert r_squared(noisy, truth) < r_squared(learned, truth)  # what the average is for
    assert 0.9 < (learned.mean() / truth.mean()).item() < 1.1


def test_with_an_actor_the_goal_is_reached_and_near_states_are_worth_more(train):
    world, generator = PointMass(shove=0.01, jitter=0.02), torch.Generator().manual_seed(2)
    fb, plain = (train(world, 600, next_action=choice) for choice in ("policy", "replay"))
    start = world.states(400, generator)
    with torch.no_grad():
        z = fb.backward_net(fb.goal).expand(400, -1)

        def share_at_goal(act):
            state, near = start, 0.0
            for _ in range(40):
                state = world.step(state, act(state), generator)
                near += ((state[:, 0] - GOAL[0]).abs() < 0.1).float().mean().item() / 40
            return near

        by_chance = share_at_goal(lambda state: world.actions(400, generator))
        by_actor = share_at_goal(lambda state: fb.actor(world.features(state), z))
    far = (start[:, 0] - GOAL[0]).abs()  # at most half a turn: at full force, steps to the goal
    action = world.actions(400, generator)
    scores, plain_scores = (model.score(world.features(start), action) for model in (fb, plain))
    rank = spearmanr(scores, far).statistic
    assert by_actor > 0.7 > 0.3 > by_chance
    # r_FB follows: it is worth more wherever the goal can be reached in time, and falls steadily with the way to it.
    assert scores.mean() > 1.5 * plain_scores.mean()
    halfway = (far > 0.2) & (far < 0.35)
    assert scores[halfway].mean() > 2 * plain_scores[halfway].mean()
    assert rank < -0.8
