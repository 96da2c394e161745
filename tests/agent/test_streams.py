"""An update on several streams is that on one, however long each of them takes."""

import pytest
import torch

from genreward_fast.agent import Agent, AgentConfig, NetworkSize, beside, fused_scan, objective
from genreward_fast.agent.decoder import Decoder
from genreward_fast.agent.encoder import Encoder
from genreward_fast.agent.returns import ReturnRange
from genreward_fast.bench.contestant import ACTIONS
from genreward_fast.bench.ours import random_batch

pytestmark = pytest.mark.gpu
# As small as the fused scan, imagination and first level take.
NETWORK = NetworkSize(deter=256, hidden=32, classes=16, depth=16, units=32, stoch=8)
PLACES = {
    "nothing": [],
    "encoder": [(Encoder, "forward")],
    "sequence": [(fused_scan.step, "gates")],
    "its gradients": [(fused_scan.back, "gates"), (fused_scan.back, "embedded")],
    "its weights": [(fused_scan, "column_sums")],
    "decoder": [(Decoder, "loss")],
    "imagination": [(objective, "imagine")],
    "returns": [(objective, "imagined_return"), (ReturnRange, "update")],
    "behaviour": [(objective, "policy_loss")],
    "replay": [(objective, "lambda_return")],
}
CYCLES = 1_000_000  # more than half a millisecond, which is longer than the parts of so small an update take


def after_updates(dtype, captured):
    config = AgentConfig(
        network=NETWORK, size="small", dtype=dtype, batch_size=2, batch_length=4, imagination=3, warmup=0,
        capture=captured,
    )  # fmt: skip
    agent = Agent(config, ACTIONS, "cuda", seed=1)
    metrics = [agent.update(random_batch(config, agent.device, seed=number))[0] for number in range(3)]
    assert captured == any(one.graphs for one in agent._captured.values())
    return agent.model.flat.buffer, agent.optimizer.buffers[0], *(torch.stack(list(m.values())) for m in metrics)


@pytest.fixture(scope="module")
def alone():
    """By dtype, what plain updates give on one stream."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beside, "_stream", lambda _, device: torch.cuda.current_stream(device))
        return {dtype: after_updates(dtype, captured=False) for dtype in ("bfloat16", "float32")}


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("place", PLACES)
def test_whatever_is_late(place, dtype, captured, alone, monkeypatch):
    for owner, name in PLACES[place]:
        original = getattr(owner, name)

        def late(*args, original=original, **options):
            torch.cuda._sleep(CYCLES)
            result = original(*args, **options)
            torch.cuda._sleep(CYCLES)
            return result

        monkeypatch.setattr(owner, name, late)
    for found, expected in zip(after_updates(dtype, captured), alone[dtype]):
        assert torch.equal(found, expected)
