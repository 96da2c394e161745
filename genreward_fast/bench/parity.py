"""How far the fast path is from the plain one: the losses of the same updates, with the same draws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch

from genreward_fast.agent import Agent, AgentConfig, RandomSampler, RecordedSampler, RecordingSampler
from genreward_fast.agent.precision import exact_products
from genreward_fast.bench.contestant import ACTIONS
from genreward_fast.bench.ours import random_batch
from genreward_fast.kernels.triton_support import references_only

UPDATES = 20
Dtype = Literal["bfloat16", "float32"]


def parity(
    config: AgentConfig, device: torch.device, updates: int = UPDATES, seed: int = 0, dtype: Dtype = "float32"
) -> dict[str, Any]:
    """Trains two agents on the same batches: `config` as it runs here, and `dtype` through the plain references.

    The fast one is given the plain one's draws, so that the two stay comparable; else they go their own ways. The
    learning rate starts at its full value, so that the parameters move.

    Returns:
        losses: for each loss, the mean over the updates of |fast - plain| / |plain|.
        largest: the same with the largest of the updates for the mean.
        worst: the largest of `losses`, without the policy loss, whose sign changes.
        policy: mean of |fast - plain| of the policy loss; `policy_largest`: the largest.
        policy_terms: the mean magnitude of what the policy loss is a mean of, about: that of the advantages times
            the entropy, which is the mean magnitude of a log probability.
        parameters: relative RMS difference of how far the parameters have moved.
        neighbour, neighbour_policy: `largest` and `policy_largest` of a second plain agent, whose first parameters
            differ from the plain one's by roundings of `config.dtype`: how far apart the losses get by themselves.
    """
    config = replace(config, warmup=0)
    plain = Agent(replace(config, dtype=dtype, capture=False), ACTIONS, device, seed=seed)
    neighbour = Agent(replace(config, dtype=dtype, capture=False), ACTIONS, device, seed=seed)
    nudge(neighbour, torch.finfo(config.compute_dtype).eps / 2)
    fast = Agent(config, ACTIONS, device, seed=seed)
    start = [p.detach().clone() for _, p in plain.model.trained()]
    source = RandomSampler(device, seed)
    rows: list[tuple[dict[str, float], dict[str, float]]] = []
    beside: list[tuple[dict[str, float], dict[str, float]]] = []
    terms = 0.0
    with exact_products():
        for number in range(updates):
            batch = random_batch(config, device, seed=number)
            recording = RecordingSampler(source)
            with references_only():
                same = replace_deter(batch, plain.config.compute_dtype)
                metrics = plain.update(same, sampler=recording)[0]
                other = neighbour.update(same, sampler=RecordedSampler(recording.draws()))[0]
            beside.append((losses_of(other), losses_of(metrics)))
            found = fast.update(batch, sampler=RecordedSampler(recording.draws()))[0]
            rows.append((losses_of(found), losses_of(metrics)))
            terms += abs((metrics["policy/advantage_magnitude"] * metrics["policy/entropy"]).item()) / updates
    names = [name for name in rows[0][1] if name != "loss/total"]
    apart, neighbours = (
        {name: [abs(ours[name] - plain[name]) / max(abs(plain[name]), 1e-12) for ours, plain in both] for name in names}
        for both in (rows, beside)
    )
    relative = {name: sum(values) / len(rows) for name, values in apart.items()}
    policy = "loss/policy"
    by_policy = [abs(ours[policy] - plain[policy]) for ours, plain in rows]
    moved = [(p.detach() - s).double() for (_, p), s in zip(plain.model.trained(), start)]
    drifted = [
        (f.detach() - p.detach()).double() for (_, f), (_, p) in zip(fast.model.trained(), plain.model.trained())
    ]
    drift = norm(drifted) / max(norm(moved), 1e-30)
    return {
        "updates": updates,
        "losses": relative,
        "largest": {name: max(values) for name, values in apart.items()},
        "worst": max(value for name, value in relative.items() if name != policy),
        "policy": sum(by_policy) / len(rows),
        "policy_largest": max(by_policy),
        "policy_terms": terms,
        "parameters": drift,
        "neighbour": {name: max(values) for name, values in neighbours.items()},
        "neighbour_policy": max(abs(ours[policy] - plain[policy]) for ours, plain in beside),
    }


@torch.no_grad()
def nudge(agent: Agent, share: float) -> None:
    """Moves every parameter by a random part of it of about `share`, in both directions."""
    generator = torch.Generator().manual_seed(1)
    for parameter in agent.model.parameters():
        parameter.mul_(1 + share * torch.randn(parameter.shape, generator=generator).to(parameter.device))


def losses_of(metrics: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in metrics.items() if name.startswith("loss/")}


def replace_deter(batch: Any, dtype: torch.dtype) -> Any:
    """The batch with its stored state in another dtype: the same values."""
    return replace(batch, deter=batch.deter.to(dtype))


def norm(tensors: list[torch.Tensor]) -> float:
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt().item()
