"""Many updates through the kernels beside the same updates through the plain references, with the same draws."""

import pytest
import torch

from genreward_fast.agent import AgentConfig, NetworkSize, objective
from genreward_fast.agent import rssm as rssm_module
from genreward_fast.bench.parity import parity
from genreward_fast.kernels.triton_support import INTERPRETED

LIMITS = {"bfloat16": 1e-2, "float32": 1e-4}
SLACK = 4
NARROW = NetworkSize(deter=512, hidden=64, classes=16, depth=16, units=64)
TINY = NetworkSize(deter=64, hidden=16, classes=4, depth=2, units=16, stoch=4, blocks=4)
POLICY = "loss/policy"


@pytest.fixture
def calls(monkeypatch):
    """How often the recurrent model's kernels ran."""
    count = {"fused_scan": 0, "imagine": 0}
    for module, name in ((rssm_module, "fused_scan"), (objective, "imagine")):
        original = getattr(module, name)

        def counted(*args, name=name, original=original, **options):
            count[name] += 1
            return original(*args, **options)

        monkeypatch.setattr(module, name, counted)
    return count


def check(config, device, updates, calls):
    """Every loss of every update agrees, though nothing but the draws is ever carried over.

    As far as it can: a predicted value is a mean over bins as far out as 5e8, whose tails nearly cancel, and LaProp
    makes a full step of a gradient that is but rounding. So the plain path itself, from parameters that differ by
    roundings, gets further apart than the limits in the losses that values enter; there the kernels may be `SLACK`
    times as far.

    The policy loss is a mean of terms of both signs, each an advantage times a log probability, which nearly cancel:
    its own size says nothing of its error. It may be wrong by the same share of these terms' mean magnitude.
    """
    found = parity(config, device, updates, dtype=config.dtype)
    limit, near = LIMITS[config.dtype], found["neighbour"]
    for name, value in found["largest"].items():
        print(f"{name}: worst {value:.2e}, mean {found['losses'][name]:.2e}; the plain path's own {near[name]:.2e}")
    policy = max(limit * found["policy_terms"], SLACK * found["neighbour_policy"])
    print(f"{POLICY}: worst {found['policy_largest']:.2e} absolute, allowed {policy:.2e}")
    print(f"parameters: {found['parameters']:.2e} of how far they moved")
    losses = {name: value for name, value in found["largest"].items() if name != POLICY}
    wrong = {name: value for name, value in losses.items() if not value <= max(limit, SLACK * near[name])}
    assert not wrong, wrong
    assert found["policy_largest"] <= policy
    assert found["parameters"] > 0  # two paths, not one and the same
    assert calls == {"fused_scan": updates, "imagine": updates}


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize(("size", "updates"), [("narrow", 200), ("12M", 200)])
def test_the_kernels_train_as_the_references(size, updates, dtype, calls):
    if size == "narrow":
        config = AgentConfig(size=size, network=NARROW, dtype=dtype, batch_size=8, batch_length=16)
    else:
        config = AgentConfig(size=size, dtype=dtype)
    check(config, torch.device("cuda"), updates, calls)


def test_on_triton_few_updates(calls):
    pytest.importorskip("triton")
    if not INTERPRETED:
        pytest.skip("without TRITON_INTERPRET=1 a CPU has one path alone")
    # Without free nats, which would hide so small a divergence.
    config = AgentConfig(
        size="tiny", network=TINY, dtype="float32", batch_size=2, batch_length=2, imagination=2, bins=31, free_nats=0.0
    )
    check(config, torch.device("cpu"), 2, calls)


@pytest.mark.slow
def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__, "on_triton", 600)
