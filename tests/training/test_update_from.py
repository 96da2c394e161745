"""Learning from a replay's rows through `Agent.update_from`, against sampling, learning and writing back one by one."""

import pytest
import torch

from genreward_fast.agent import Agent, AgentConfig, NetworkSize
from genreward_fast.training.replay import Replay
from genreward_fast.types import Latents

SMALL = NetworkSize(deter=64, hidden=32, classes=4, depth=2, units=32, stoch=8)
ACTIONS, ENVS, BATCH, ROWS = 3, 2, 3, 40
CPU_AND_GPU = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def make(device, **options):
    """An agent and a filled replay, always the same."""
    config = AgentConfig("small", SMALL, "float32", BATCH, batch_length=6, imagination=4, lr=3e-4, warmup=2, **options)
    sizes = {"action_size": ACTIONS, "feature_dim": 0, "deter_size": SMALL.deter, "stoch_size": SMALL.stoch}
    replay = Replay(ENVS, ENVS * 64, 6, **sizes, device=device, seed=3)
    generator = torch.Generator().manual_seed(0)
    for row in range(ROWS):
        first = torch.full((ENVS,), row % 16 == 0)
        replay.append(
            image=torch.randint(0, 256, (ENVS, 64, 64, 3), generator=generator, dtype=torch.uint8),
            action=torch.rand(ENVS, ACTIONS, generator=generator) * 2 - 1,
            reward=torch.randn(ENVS, generator=generator),
            is_first=first,
            is_last=torch.full((ENVS,), row % 16 == 15),
            is_terminal=torch.zeros(ENVS, dtype=torch.bool),
            feature=None,
            latents=Latents(
                torch.randn(ENVS, SMALL.deter, generator=generator).tanh(),
                torch.randint(0, SMALL.classes, (ENVS, SMALL.stoch), generator=generator).to(torch.uint8),
            ),
        )
    for env in range(ENVS):
        replay.release(env, ROWS)
    return Agent(config, ACTIONS, device, seed=1), replay


def learn_step_by_step(agent, replay):
    batch = replay.sample(BATCH)
    metrics, latents = agent.update(batch)
    replay.write_back(batch.index[:, 1:], latents)
    return metrics


def learn(agent, replay):
    return agent.update_from(replay, torch.from_numpy(replay.draw(BATCH)))


def learn_as_recorded(agent, replay):
    """What the graph records, without the graph."""
    agent._rows = replay
    index = torch.from_numpy(replay.draw(BATCH))
    agent.model.refresh()
    agent.optimizer.advance()
    return agent._metrics(*agent._update_rows(index.to(replay.storage)))


@CPU_AND_GPU
@pytest.mark.parametrize("call", [learn, learn_as_recorded])
def test_it_is_sampling_learning_and_writing_back(call, device):
    (plain, rows), (agent, replay) = make(device, capture=False), make(device, capture=False)
    before = replay.store.arrays["stoch"].clone()
    for _ in range(3):
        expected, found = learn_step_by_step(plain, rows), call(agent, replay)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(float(value), rel=1e-5), name
    for name, array in rows.store.arrays.items():
        assert torch.allclose(array.float(), replay.store.arrays[name].float(), atol=1e-5), name
    assert not torch.equal(before, replay.store.arrays["stoch"])
    assert agent.updates == 3


@pytest.mark.gpu
def test_the_graph_does_the_same():
    (plain, rows), (agent, replay) = make("cuda", capture=False), make("cuda")
    found = [learn(agent, replay) for _ in range(8)]  # never waiting: no index may be overwritten too early
    expected = [learn_step_by_step(plain, rows) for _ in range(8)]
    assert agent._captured["rows"].graphs == 1
    for a, b in zip(expected, found):
        for name, value in a.items():
            assert float(b[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), name
    same = rows.store.arrays["stoch"] == replay.store.arrays["stoch"]
    assert same.float().mean() > 0.999
    deter = [store.arrays["deter"].float() for store in (rows.store, replay.store)]
    assert torch.allclose(*deter, atol=1e-2)  # kept as bfloat16


@pytest.mark.gpu
def test_the_graph_never_waits():
    agent, replay = make("cuda")
    for _ in range(2):
        learn(agent, replay)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        learn(agent, replay)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_rows_in_host_memory_are_learned_from(monkeypatch):
    on_gpu = make("cuda")
    monkeypatch.setattr("genreward_fast.training.replay_storage.DEVICE_SHARE", 0.0)
    on_host = make("cuda")
    assert on_host[1].storage.type == "cpu"
    for _ in range(3):
        expected, found = learn(*on_gpu), learn(*on_host)
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), name
