"""How far the fast path is from the plain one: the losses of the same updates, with the same draws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from genreward_fast.agent import Agent, AgentConfig, RandomSampler, RecordedSampler, RecordingSampler
from genreward_fast.agent.precision import exact_products
from genreward_fast.bench.contestant import ACTIONS
from genreward_fast.bench.ours import random_batch
from genreward_fast.kernels.triton_support import references_only

UPDATES = 20


def parity(config: AgentConfig, device: torch.device, updates: int = UPDATES, seed: int = 0) -> dict[str, Any]:
    """Trains two agents on the same batches: `config` as it runs here, and float32 through the plain references.

    The fast one is given the plain one's draws, so that the two stay comparable. The learning rate starts at its full
    value, so that the parameters move.

    Returns:
        losses: for each loss, the mean over the updates of |fast - plain| / |plain|.
        worst: the largest of them, without the policy loss, whose sign changes.
        policy: mean of |fast - plain| of the policy loss.
        parameters: relative RMS difference of how far the parameters have moved.
    """
    config = replace(config, warmup=0)
    plain = Agent(replace(config, dtype="float32", capture=False), ACTIONS, device, seed=seed)
    fast = Agent(config, ACTIONS, device, seed=seed)
    start = [p.detach().clone() for _, p in plain.model.trained()]
    source = RandomSampler(device, seed)
    rows: list[tuple[dict[str, float], dict[str, float]]] = []
    with exact_products():
        for number in range(updates):
            batch = random_batch(config, device, seed=number)
            recording = RecordingSampler(source)
            with references_only():
                expected = losses_of(plain.update(replace_deter(batch, torch.float32), sampler=recording)[0])
            rows.append((losses_of(fast.update(batch, sampler=RecordedSampler(recording.draws()))[0]), expected))
    names = [name for name in rows[0][1] if name != "loss/total"]
    relative = {
        name: sum(abs(ours[name] - plain[name]) / max(abs(plain[name]), 1e-12) for ours, plain in rows) / len(rows)
        for name in names
    }
    policy = "loss/policy"
    moved = [(p.detach() - s).double() for (_, p), s in zip(plain.model.trained(), start)]
    apart = [(f.detach() - p.detach()).double() for (_, f), (_, p) in zip(fast.model.trained(), plain.model.trained())]
    drift = norm(apart) / max(norm(moved), 1e-30)
    return {
        "updates": updates,
        "losses": relative,
        "worst": max(value for name, value in relative.items() if name != policy),
        "policy": sum(abs(ours[policy] - plain[policy]) for ours, plain in rows) / len(rows),
        "parameters": drift,
    }


def losses_of(metrics: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in metrics.items() if name.startswith("loss/")}


def replace_deter(batch: Any, dtype: torch.dtype) -> Any:
    """The batch with its stored state in another dtype: the same values."""
    return replace(batch, deter=batch.deter.to(dtype))


def norm(tensors: list[torch.Tensor]) -> float:
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt().item()
