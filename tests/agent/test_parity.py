"""Many updates through the kernels beside the same updates through the plain references, with the same draws."""

import pytest
import torch

from genreward_fast.agent import AgentConfig, NetworkSize
from genreward_fast.bench.parity import parity
from genreward_fast.kernels.triton_support import INTERPRETED

LIMITS = {"bfloat16": 1e-2, "float32": 1e-4}
SLACK = 4
NARROW = NetworkSize(deter=512, hidden=64, classes=16, depth=16, units=64)
TINY = NetworkSize(deter=64, hidden=16, classes=4, depth=2, units=16, stoch=4, blocks=4)
POLICY = "loss/policy"


def check(config, device, updates, calls):
    """Every loss of every update agrees, though nothing but the draws is ever carried over.

    As far as float32 can tell: a predicted value is a mean over bins as far out as 5e8, whose two sides cancel. While
    nothing tells a bin from its mirror their logits are equal to the last bit; once rounding has parted them, one unit
    in the last place of two probabilities is a tenth in the value. This is a matter of luck: of two plain paths, one
    whose parameters were rounded another way has been 10^5 times as far from the exact losses, and neither is wrong.

    So where a loss does not agree within the limit, the kernels must be as near to the exact losses, those in float64,
    as the plain path or its neighbour is, which is rounded another way. `SLACK` is for what chance does: of two
    such neighbours one has been up to three times as far as the other, by the largest and by the mean of a run.

    The policy loss is a mean of terms of both signs, each an advantage times a log probability, which nearly cancel:
    its own size says nothing of its error. It may be wrong by the same share of these terms' mean magnitude.
    """
    found = parity(config, device, updates, dtype=config.dtype, exact=True)
    limit, exact = LIMITS[config.dtype], found["exact"]
    apart = found["largest"] | {POLICY: found["policy_largest"]}
    wrong = {}
    for name, value in apart.items():
        agrees = value <= limit * (found["policy_terms"] if name == POLICY else 1)
        ours, allowed = [], []
        for kind in ("largest", "losses"):
            mine, *others = (exact[path][kind][name] for path in ("fast", "plain", "neighbour"))
            ours.append(mine)
            allowed.append(SLACK * max(others))
            print(f"{name} {kind}: from exact {mine:.2e}, plain {others[0]:.2e}, neighbour {others[1]:.2e}")
        print(f"{name}: largest from plain {value:.2e}, {'agrees' if agrees else 'does not agree'}")
        if not agrees and not all(mine <= most for mine, most in zip(ours, allowed)):
            wrong[name] = (value, ours, allowed)
    print(f"parameters: {found['parameters']:.2e} of how far they moved")
    assert not wrong, wrong
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
