"""The estimate of an update's memory, and what is said when it does not fit."""

import dataclasses
import gc

import pytest
import torch

from genreward_fast.agent import SIZES, Agent, AgentConfig, memory
from genreward_fast.errors import UserError


def test_counts_the_parameters_without_making_them():
    config = AgentConfig(size="tiny")
    agent = Agent(config, 4, "cpu")
    assert memory.parameter_count(config) == sum(p.numel() for _, p in agent.model.trained())
    assert memory.parameter_count(AgentConfig(size="12M")) == 10492618


# Peak of the live tensors that an update makes at imagination 15, counted with a dispatch mode on a CPU, in MB.
@pytest.mark.parametrize(
    ("size", "dtype", "length", "megabytes"),
    [
        ("tiny", "bfloat16", 32, 149.4),
        ("12M", "bfloat16", 16, 267.5),
        ("12M", "bfloat16", 32, 509.0),
        ("12M", "float32", 32, 753.7),
        ("25M", "bfloat16", 32, 768.9),
    ],
)
def test_activations_are_near_the_measured_peak(size, dtype, length, megabytes):
    config = AgentConfig(size=size, dtype=dtype, batch_size=6, batch_length=length)
    assert memory.activation_bytes(config) / 1e6 == pytest.approx(megabytes, rel=0.15)


def test_the_whole_is_near_what_was_measured_on_a_gpu():
    assert memory.required_bytes(AgentConfig()) / 1e9 == pytest.approx(
        3.09, rel=0.1
    )  # benchmarks/results/agent_h100.json


def test_grows_with_everything():
    least = memory.required_bytes(AgentConfig(size="25M"))
    for change in (
        {"size": "50M"},
        {"batch_size": 17},
        {"batch_length": 65},
        {"imagination": 16},
        {"dtype": "float32"},
    ):
        assert memory.required_bytes(dataclasses.replace(AgentConfig(size="25M"), **change)) > least
    required = [memory.required_bytes(AgentConfig(size=size)) for size in SIZES]
    assert required == sorted(required)
    assert required[-1] < 80e9  # size 400M fits one H100


def test_says_how_much_is_missing(monkeypatch):
    config = AgentConfig()
    required = memory.required_bytes(config)
    monkeypatch.setattr(memory, "free_bytes", lambda device: required - 10**9)
    with pytest.raises(UserError, match=r"1\.0 GB are missing; lower --batch-size, --batch-length or --size"):
        memory.check_memory(config, 4, "cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda device: required)
    memory.check_memory(config, 4, "cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    memory.check_memory(config, 4, "meta")


def test_knows_what_is_free_here():
    assert 10**8 < memory.free_bytes(torch.device("cpu")) < 10**14


@pytest.mark.gpu
def test_nothing_is_allocated_before_a_refusal():
    gc.collect()  # what other tests have left
    before = torch.cuda.memory_allocated()
    with pytest.raises(UserError, match="GPU 0 has"):
        memory.check_memory(AgentConfig(batch_size=100_000), 4, "cuda")
    assert torch.cuda.memory_allocated() == before


@pytest.mark.gpu
@pytest.mark.parametrize("size", ["12M", "50M"])
def test_the_estimate_holds_on_this_gpu(size):
    from genreward_fast.bench.ours import random_batch

    config = AgentConfig(size=size)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    agent, batch = Agent(config, 4, "cuda"), random_batch(config, torch.device("cuda"))
    for _ in range(3):
        agent.update(batch)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() < 1.15 * memory.required_bytes(config)
