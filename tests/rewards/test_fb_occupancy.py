import torch

from genreward_fast.rewards.config import FBConfig
from genreward_fast.rewards.fb import ForwardBackward
from genreward_fast.types import Batch

STATES, GAMMA, STEPS = 6, 0.8, 700


def ring() -> torch.Tensor:
    """P[a, s, s′] of a ring: action 0 or 1 steps left or right with probability 0.9, else nothing moves."""
    eye = torch.eye(STATES, dtype=torch.float64)
    return torch.stack([0.9 * eye.roll(step, 1) + 0.1 * eye for step in (-1, 1)])


def test_the_learned_measure_is_the_discounted_occupancy():
    """On a ring with uniformly random actions, F·B must match [P_a (I − γ P)⁻¹](s, s′) / ρ(s′), computed exactly."""
    steps = ring()
    policy = steps.mean(0)
    occupancy = steps @ torch.linalg.inv(torch.eye(STATES, dtype=torch.float64) - GAMMA * policy) * STATES

    generator = torch.Generator().manual_seed(0)
    config = FBConfig(z_dim=8, hidden=48, lr=2e-3, tau=0.02, gamma=GAMMA, reduce="mean", batch=128)
    fb = ForwardBackward(config, torch.eye(STATES)[0], action_size=1, device="cpu", seed=0)
    flags = torch.zeros(config.batch, 2, dtype=torch.bool)
    for _ in range(STEPS):
        state = torch.randint(STATES, (config.batch,), generator=generator)
        action = torch.randint(2, (config.batch, 2), generator=generator)
        following = torch.multinomial(steps[action[:, 0], state], 1, generator=generator).squeeze(1)
        rows = torch.stack([state, following], dim=1)
        fb.update(
            Batch(
                action=action.unsqueeze(-1) * 2.0 - 1,
                reward=torch.zeros(config.batch, 2),
                is_first=flags,
                is_last=flags,
                is_terminal=flags,
                index=rows,
                feature=torch.eye(STATES)[rows],
            )
        )
    everything = torch.eye(STATES)
    with torch.no_grad():
        backward = fb.backward_net(everything)
        z = fb.sample_z(everything)
        learned = torch.stack(
            [fb.forward_net(everything, torch.full((STATES, 1), a), z).mean(0) @ backward.T for a in (-1.0, 1.0)]
        )
    pair = torch.stack([learned.flatten().double(), occupancy.flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.97
    # A density, so it must be right in size too.
    assert 0.8 < (learned.mean() / occupancy.mean()).item() < 1.25

    # The score of (s, a) at the goal is the same measure: greatest where the action steps onto the goal (state 0).
    scores = fb.score(everything.repeat(2, 1), torch.tensor([-1.0, 1.0]).repeat_interleave(STATES)[:, None])
    best = {divmod(int(index), STATES) for index in scores.topk(2).indices}
    assert best == {(0, 1), (1, STATES - 1)}
