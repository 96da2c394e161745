"""The bound against transition matrices of a toy of two codes and a mask, written out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import VQDiffusionScheduler

from genreward_fast.rewards.diffusion_reward.bound import evaluation_steps, gumbel_noise, sampled_bound
from genreward_fast.rewards.diffusion_reward.fit import AUXILIARY, denoising_loss, noised
from genreward_fast.rewards.diffusion_reward.network import NextFrameNetwork
from genreward_fast.rewards.diffusion_reward.scores import Entropy

CODES, MASK = 2, 2


class Toy:
    """Two codes that are kept, replaced or masked over T steps: matrices from state (row) to state (column)."""

    def __init__(self, timesteps: int):
        kept = np.linspace(0.99999, 0.000009, timesteps)
        masked = np.linspace(0.000009, 0.99999, timesteps)
        replaced = (1 - kept - masked) / CODES
        self.whole = [
            np.array([[k + r, r, m], [r, k + r, m], [0, 0, 1]]) for k, r, m in zip(kept, replaced, masked, strict=True)
        ]
        self.single = [self.whole[0]]
        for before, after in zip(self.whole[:-1], self.whole[1:], strict=True):
            self.single.append(np.linalg.solve(before, after))

    def posterior(self, told: np.ndarray, noised: int, t: int) -> np.ndarray:
        """p(x_{t-1} | x_t = noised) over both codes and the mask, from p(x_0): Bayes' rule for each x_0."""
        result = np.zeros(3)
        for start in range(CODES):
            joint = self.whole[t - 1][start] * self.single[t][:, noised]
            result += told[start] * joint / joint.sum()
        return result


def test_the_evaluated_steps():
    steps = evaluation_steps(100, 9)
    assert len(steps) == 11
    assert steps[:2] == [(99, 90), (89, 80)]
    assert steps[-2:] == [(9, 9), (0, 0)]
    assert evaluation_steps(4, 0) == [(3, 3), (2, 2), (1, 1), (0, 0)]


@pytest.mark.parametrize(("timesteps", "skip"), [(100, 9), (12, 0), (30, 3)])
def test_the_bound_is_that_of_the_written_out_toy(timesteps, skip):
    generator = torch.Generator().manual_seed(timesteps)
    toy, schedule = Toy(timesteps), VQDiffusionScheduler(CODES + 1, timesteps)
    steps = evaluation_steps(timesteps, skip)
    # p(x_0 = 1) given what is seen (two codes or the mask) and the timestep; two places, each by itself.
    table = 0.1 + 0.8 * torch.rand(timesteps, 3, 2, generator=generator)
    noise = torch.randn(len(steps), 3, 2, generator=generator)

    def predict(codes, timestep):
        one = table[timestep][codes, torch.arange(2)]
        return torch.stack([1 - one, one], 1).log()

    bound, sample = sampled_bound(predict, schedule, steps, noise, 1)

    expected = 0.0
    for place in range(2):
        state, path = MASK, []
        for (told, t), gumbel in zip(steps, noise[:, :, place].numpy(), strict=True):
            one = table[told, state, place].item()
            p = np.array([1 - one, one, 0])
            if t:
                p = toy.posterior(p[:2], state, t)
            path.append((t, state, p))
            with np.errstate(divide="ignore"):
                state = int(np.argmax(np.log(p) + gumbel))
        assert state == sample[0, place]
        expected += np.log(path[-1][2][state])
        certain = np.eye(2)[state]
        for t, seen, p in path[:-1]:
            q = toy.posterior(certain, seen, t)
            where = q > 0
            expected -= (q[where] * np.log(q[where] / p[where])).sum()
    assert bound.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("timestep", [0, 1, 7, 11])
def test_the_loss_is_that_of_the_written_out_toy(timestep, monkeypatch):
    toy, schedule = Toy(12), VQDiffusionScheduler(CODES + 1, 12)
    codes, seen = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 0, MASK, MASK]])
    monkeypatch.setattr("genreward_fast.rewards.diffusion_reward.fit.noised", lambda *_: seen)
    one = torch.tensor([[0.3, 0.6, 0.2, 0.9]])
    loss = denoising_loss(lambda *_: torch.stack([1 - one, one], 1).log(), schedule, codes, timestep)
    told = np.stack([1 - one[0].numpy(), one[0].numpy()], 1)
    direct = -np.log(told[np.arange(4), codes[0]]).mean()
    expected = direct
    if timestep:
        divergence = 0.0
        for place in range(4):
            q = toy.posterior(np.eye(2)[codes[0, place]], int(seen[0, place]), timestep)
            p = toy.posterior(told[place], int(seen[0, place]), timestep)
            divergence += (q[q > 0] * np.log(q[q > 0] / p[q > 0])).sum() / 4
        expected = divergence
    expected += AUXILIARY * (2 - timestep / 12) * direct
    assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_noise_replaces_and_masks_as_often_as_the_matrices_say():
    torch.manual_seed(0)
    toy, schedule = Toy(20), VQDiffusionScheduler(CODES + 1, 20)
    for timestep in (3, 10, 16):
        seen = noised(torch.ones(1, 40_000, dtype=torch.long), schedule, timestep)
        shares = torch.bincount(seen.flatten(), minlength=3) / 40_000
        torch.testing.assert_close(shares, torch.tensor(toy.whole[timestep][1]).float(), atol=0.015, rtol=0)


def test_gumbel_noise_has_its_mean_and_scale():
    noise = gumbel_noise(50, 40, 30, 1.0)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.03)
    assert noise.std().item() == pytest.approx(np.pi / 6**0.5, abs=0.03)
    torch.testing.assert_close(gumbel_noise(50, 40, 30, 0.5), 0.5 * noise)


@pytest.fixture(scope="module")
def entropy() -> Entropy:
    torch.manual_seed(3)
    network = NextFrameNetwork(11, 2, layers=2, heads=2, head_size=4, past_size=8, timesteps=20)
    for parameter in network.parameters():  # far from uniform, so that frames differ
        parameter.data.mul_(2.0)
    return Entropy(network, skip=4, noise_scale=1.0)


def test_a_batch_is_its_windows_one_by_one(entropy):
    codes = torch.randint(11, (3, 5, 4), generator=torch.Generator().manual_seed(1))
    together = entropy(codes, 3)
    assert together.shape == (3, 3)
    torch.testing.assert_close(together, torch.cat([entropy(codes[i : i + 1], 3) for i in range(3)]))
    torch.testing.assert_close(together, entropy(codes, 5)[:, -3:])
    torch.testing.assert_close(together, entropy(codes, 3))  # nothing is drawn
    assert together.std() > 0.01


def test_a_row_looks_at_its_frame_and_the_one_before(entropy):
    generator = torch.Generator().manual_seed(2)
    codes, others = (torch.randint(11, (1, 6, 4), generator=generator) for _ in range(2))
    before = entropy(codes, 6)
    for changed in range(6):
        other = codes.clone()
        other[:, changed] = others[:, changed]
        moved = (entropy(other, 6) - before).abs()[0] > 1e-4
        assert moved.tolist() == [row in (changed, changed + 1) for row in range(6)]
    torch.testing.assert_close(before[:, 0], entropy.of_pasts(codes[:, [0, 0]]))


def test_a_network_that_is_sure_has_less_entropy():
    schedule, steps, noise = VQDiffusionScheduler(6, 20), evaluation_steps(20, 4), gumbel_noise(5, 5, 3, 1.0)

    def told(sureness):
        logits = torch.zeros(4, 5, 3)
        logits[:, 2] = sureness
        return sampled_bound(lambda *_: logits.log_softmax(1), schedule, steps, noise, 4)[0]

    unsure, sure, certain = told(0.0), told(5.0), told(50.0)
    assert (unsure < sure).all()
    assert (sure < certain).all()
    torch.testing.assert_close(certain, torch.zeros(4), atol=1e-3, rtol=0)


def test_the_networks_past_matters_and_its_order_too():
    torch.manual_seed(0)
    network = NextFrameNetwork(7, 2, layers=1, heads=2, head_size=4, past_size=8, timesteps=10).eval()
    seen, past = torch.randint(8, (2, 4)), torch.randint(7, (2, 2, 4))
    with torch.no_grad():
        told = network(seen, past, 4)
        assert told.shape == (2, 7, 4)
        torch.testing.assert_close(told.exp().sum(1), torch.ones(2, 4))
        assert not torch.allclose(told, network(seen, past.flip(1), 4), atol=1e-6)
        assert not torch.allclose(told, network(seen, past, 5), atol=1e-6)
    assert SimpleNamespace(**network.config).vocabulary == 7
