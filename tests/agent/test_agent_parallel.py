"""Two processes with half of each batch against one with the whole. Run as a script, this file is one of the two."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genreward_fast.agent import Agent, AgentConfig, Draws, NetworkSize, RecordedSampler, RecordingSampler
from genreward_fast.agent.parallel import Parallel
from genreward_fast.errors import UserError
from genreward_fast.types import Batch

SMALL = NetworkSize(deter=64, hidden=32, classes=4, depth=2, units=32, stoch=8)
ACTIONS, UPDATES, ROWS = 3, 3, 4


def make_agent(batch_size, seed, device="cpu", parallel=None):
    config = AgentConfig("small", SMALL, "float32", batch_size, batch_length=6, imagination=4, lr=3e-3, warmup=1)
    return Agent(config, ACTIONS, device, seed=seed, parallel=parallel)


def make_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = (ROWS, 7)
    is_first = torch.rand(rows, generator=generator) < 0.1
    return Batch(
        image=torch.randint(0, 256, (*rows, 64, 64, 3), generator=generator, dtype=torch.uint8),
        action=torch.rand(*rows, ACTIONS, generator=generator) * 2 - 1,
        reward=torch.randn(rows, generator=generator),
        is_first=is_first,
        is_last=is_first.roll(-1, 1),
        is_terminal=torch.zeros_like(is_first),
        deter=torch.randn(*rows, SMALL.deter, generator=generator).tanh(),
        stoch=torch.randint(0, SMALL.classes, (*rows, SMALL.stoch), generator=generator).to(torch.uint8),
        index=torch.arange(ROWS * 7).view(rows),
    )


def share(batch, rank, size, device):
    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return Batch(**{k: None if v is None else v.chunk(size)[rank].to(device) for k, v in values.items()})


def result(agent, metrics):
    return {
        "parameters": {name: p.detach().cpu() for name, p in agent.model.state_dict().items()},
        "metrics": {name: float(value) for name, value in metrics.items()},
        "generator": agent.sampler.generator.get_state(),
    }


def work(folder: Path, device: str) -> None:
    torch.backends.cudnn.allow_tf32 = False
    parallel, own = Parallel.from_environment(device)
    rank, size = parallel.rank, parallel.size
    agent = make_agent(ROWS // size, seed=rank, device=own, parallel=parallel)  # the parameters of process 0 count
    for update in range(UPDATES):
        draws = torch.load(folder / f"draws{update}.pt")
        mine = Draws(**{name: value.chunk(size)[rank].to(own) for name, value in draws.items()})
        metrics, _ = agent.update(share(make_batch(update), rank, size, own), RecordedSampler(mine))
    torch.save(result(agent, metrics), folder / f"given{rank}.pt")
    for update in range(3):  # as CUDA graphs, if on CUDA
        metrics, _ = agent.update(share(make_batch(update), rank, size, own))
    torch.save(result(agent, metrics), folder / f"own{rank}.pt")
    torch.save(agent.state_dict(), folder / f"state{rank}.pt")
    parallel.close()


def two_processes(folder: Path, device: str) -> dict:
    """What one process makes of whole batches, and what two make of their halves is in the folder."""
    single = make_agent(ROWS, seed=0, device=device)
    for update in range(UPDATES):
        recorder = RecordingSampler(single.sampler)
        metrics, _ = single.update(share(make_batch(update), 0, 1, device), recorder)
        draws = {name: value.cpu() for name, value in vars(recorder.draws()).items()}
        torch.save(draws, folder / f"draws{update}.pt")
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, __file__, str(folder), device], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return result(single, metrics)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_two_halves_are_the_whole(device, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    expected = two_processes(tmp_path, device)
    # On a GPU other batch sizes take other kernels, and LaProp makes steps of the same size out of small gradients.
    limit = 1e-5 if device == "cpu" else 1e-2
    given, own = ([torch.load(tmp_path / f"{name}{rank}.pt") for rank in (0, 1)] for name in ("given", "own"))
    for name, value in expected["parameters"].items():
        found = given[0]["parameters"][name]
        assert float((found - value).norm()) <= limit * float(value.norm()) + 1e-7, name
    for name, value in expected["metrics"].items():
        if name != "policy/advantage_std":  # the mean of two deviations is not that of both together
            assert given[0]["metrics"][name] == pytest.approx(value, rel=10 * limit, abs=1e-5), name
    for a, b in (given, own):
        assert a["metrics"] == b["metrics"]
        assert all(torch.equal(value, b["parameters"][name]) for name, value in a["parameters"].items())
    assert not torch.equal(own[0]["generator"], own[1]["generator"])
    changed = [not torch.equal(v, own[0]["parameters"][n]) for n, v in given[0]["parameters"].items()]
    assert sum(changed) > len(changed) / 2


def test_parallel_training_needs_torchrun(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match="torchrun"):
        Parallel.from_environment("cpu")


def test_one_process_imports_nothing_for_several():
    code = (
        "import sys, torch; before = set(sys.modules); import genreward_fast.agent;"
        "print([m for m in set(sys.modules) - before if m.startswith('torch.distributed')])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2])
