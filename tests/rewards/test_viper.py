"""VIPER's likelihood, frame by frame."""

from types import SimpleNamespace

import pytest
import torch

from genreward_fast.rewards.viper.network import build_network, code_log_likelihood
from genreward_fast.rewards.viper.scores import Likelihood

VOCABULARY, LENGTH, FRAMES = 9, 4, 5


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = build_network(SimpleNamespace(vocabulary=VOCABULARY, length=LENGTH), "tiny", FRAMES).eval()
    for parameter in network.parameters():  # far from uniform, so that frames differ
        parameter.data.mul_(3.0)
    return network


@pytest.fixture
def codes() -> torch.Tensor:
    return torch.randint(VOCABULARY, (3, FRAMES, LENGTH), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def token_by_token(network, codes: torch.Tensor) -> torch.Tensor:
    """(T,) log p of each frame of one window: every code is predicted on its own from what precedes it."""
    sequence = [VOCABULARY, *codes.flatten().tolist()]
    nats = []
    for position in range(1, len(sequence)):
        logits = network(torch.tensor([sequence[:position]])).logits[0, -1].double()
        nats.append((logits[sequence[position]] - logits.exp().sum().log()).item())
    return torch.tensor(nats).view(-1, LENGTH).sum(1)


def test_one_pass_gives_what_code_after_code_gives(network, codes):
    found = Likelihood(network)(codes, FRAMES)
    expected = torch.stack([token_by_token(network, window) for window in codes])
    assert (found - expected).square().mean().sqrt() <= 1e-5 * expected.square().mean().sqrt()
    assert expected.std() > 0.1


@pytest.mark.parametrize("fresh", [1, 2, 5])
def test_the_last_frames_and_one_by_one(network, codes, fresh):
    whole, likelihood = Likelihood(network)(codes, FRAMES), Likelihood(network)
    torch.testing.assert_close(likelihood(codes, fresh), whole[:, -fresh:])
    alone = torch.cat([likelihood(window[None], fresh) for window in codes])
    torch.testing.assert_close(alone, likelihood(codes, fresh))


def test_probabilities_of_all_codes_sum_to_less_than_one_by_what_begins_a_sequence(network, codes):
    first = codes[:1, :2].repeat(VOCABULARY, 1, 1)
    first[:, 1, -1] = torch.arange(VOCABULARY)
    with torch.no_grad():
        mass = code_log_likelihood(network, first, 1)[:, 0, -1].exp().sum().item()
        begin = network(torch.tensor([[VOCABULARY, *first[0].flatten()[:-1].tolist()]])).logits[0, -1].softmax(0)[-1]
    assert mass == pytest.approx(1 - begin.item(), abs=1e-5)


def test_later_frames_do_not_matter(network, codes):
    other = codes.clone()
    other[:, 3:] = (other[:, 3:] + 1) % VOCABULARY
    likelihood = Likelihood(network)
    torch.testing.assert_close(likelihood(codes, FRAMES)[:, :3], likelihood(other, FRAMES)[:, :3])
    assert (likelihood(codes, FRAMES)[:, 3:] - likelihood(other, FRAMES)[:, 3:]).abs().max() > 0.01
