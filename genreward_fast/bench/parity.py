"""How far the fast path is from the plain one, and both from the exact result: the losses of the same updates."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch

from genreward_fast.agent import Agent, AgentConfig, RandomSampler, RecordedSampler, RecordingSampler
from genreward_fast.agent.precision import exact_products
from genreward_fast.bench.contestant import ACTIONS
from genreward_fast.bench.ours import random_batch
from genreward_fast.kernels.triton_support import references_only

UPDATES = 20
POLICY = "loss/policy"
Dtype = Literal["bfloat16", "float32"]
Losses = dict[str, float]


def parity(
    config: AgentConfig,
    device: torch.device,
    updates: int = UPDATES,
    seed: int = 0,
    dtype: Dtype = "float32",
    exact: bool = False,
) -> dict[str, Any]:
    """Trains two agents on the same batches: `config` as it runs here, and `dtype` through the plain references.

    The fast one is given the plain one's draws, so that the two stay comparable; else they go their own ways. The
    learning rate starts at its full value, so that the parameters move.

    Args:
        exact: trains two more agents beside them, with the same draws: one in float64, and the plain one's neighbour,
            whose parameters are rounded another way after each update (`round_otherwise`). So it shows how much of a
            difference is rounding, which no path is spared. Slow on most GPUs.

    Returns:
        losses: for each loss, the mean over the updates of |fast - plain| / |plain|.
        largest: the same with the largest of the updates for the mean.
        worst: the largest of `losses`, without the policy loss, whose sign changes.
        policy: mean of |fast - plain| of the policy loss; `policy_largest`: the largest.
        policy_terms: the mean magnitude of what the policy loss is a mean of, about: that of the advantages times
            the entropy, which is the mean magnitude of a log probability.
        parameters: relative RMS difference of how far the parameters have moved.
        exact: only with `exact`; for each of "fast", "plain" and "neighbour" the `losses` and `largest` as above, but
            of what is between it and the agent in float64. For the policy loss it is not relative.
    """
    config = replace(config, warmup=0)
    plain = Agent(replace(config, dtype=dtype, capture=False), ACTIONS, device, seed=seed)
    fast = Agent(config, ACTIONS, device, seed=seed)
    agents = {"plain": plain, "fast": fast}
    if exact:
        agents["neighbour"] = Agent(plain.config, ACTIONS, device, seed=seed)
        agents["exact"] = Agent(replace(config, dtype="float64", capture=False), ACTIONS, device, seed=seed)
    start = [p.detach().clone() for _, p in plain.model.trained()]
    source = RandomSampler(device, seed)
    found: dict[str, list[Losses]] = {name: [] for name in agents}
    terms = 0.0
    with exact_products():
        for number in range(updates):
            batch = random_batch(config, device, seed=number)
            recording = RecordingSampler(source)
            with references_only():
                metrics = plain.update(replace_deter(batch, plain.config.compute_dtype), sampler=recording)[0]
            found["plain"].append(losses_of(metrics))
            terms += abs((metrics["policy/advantage_magnitude"] * metrics["policy/entropy"]).item()) / updates
            draws = recording.draws()
            for name in list(agents)[1:]:
                same = replace_deter(batch, agents[name].config.compute_dtype)
                with nullcontext() if name == "fast" else references_only():
                    metrics = agents[name].update(same, sampler=RecordedSampler(draws))[0]
                found[name].append(losses_of(metrics))
            if exact:
                round_otherwise(agents["neighbour"], seed=number)
    apart = distances(found["fast"], found["plain"])
    by_policy = distances(found["fast"], found["plain"], absolute=(POLICY,))[POLICY]
    moved = [(p.detach() - s).double() for (_, p), s in zip(plain.model.trained(), start)]
    drifted = [
        (f.detach() - p.detach()).double() for (_, f), (_, p) in zip(fast.model.trained(), plain.model.trained())
    ]
    result: dict[str, Any] = {"updates": updates, **over_updates(apart)}
    result |= {
        "worst": torch.stack([values.mean() for name, values in apart.items() if name != POLICY]).max().item(),
        "policy": by_policy.mean().item(),
        "policy_largest": by_policy.max().item(),
        "policy_terms": terms,
        "parameters": norm(drifted) / max(norm(moved), 1e-30),
    }
    if exact:
        result["exact"] = {
            name: over_updates(distances(losses, found["exact"], absolute=(POLICY,)))
            for name, losses in found.items()
            if name != "exact"
        }
    return result


def distances(ours: list[Losses], theirs: list[Losses], absolute: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """For each loss (updates,) float64 |ours - theirs|, relative to |theirs| unless the loss is one of `absolute`."""

    def column(losses: list[Losses], name: str) -> torch.Tensor:
        return torch.tensor([one[name] for one in losses], dtype=torch.float64)

    result = {}
    for name in theirs[0]:
        if name != "loss/total":
            goal = column(theirs, name)
            size = 1.0 if name in absolute else goal.abs().clamp(min=1e-12)
            result[name] = (column(ours, name) - goal).abs() / size
    return result


def over_updates(apart: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Mean and largest of what `distances` gives; a NaN stays one."""
    return {
        "losses": {name: values.mean().item() for name, values in apart.items()},
        "largest": {name: values.max().item() for name, values in apart.items()},
    }


@torch.no_grad()
def round_otherwise(agent: Agent, seed: int) -> None:
    """Moves each parameter to the next number above or below, or leaves it: what sums in another order may do to it.

    Zeros stay, which are those between the tensors, too.
    """
    for buffer in (agent.model.flat.buffer, agent.model.slow.buffer):
        generator = torch.Generator(buffer.device).manual_seed(seed)
        way = torch.randint(-1, 2, buffer.shape, generator=generator, device=buffer.device)
        moved = torch.nextafter(buffer, way * torch.inf)
        buffer.copy_(torch.where((way == 0) | (buffer == 0), buffer, moved))
    agent.model.refresh(force=True)


def losses_of(metrics: dict[str, torch.Tensor]) -> Losses:
    return {name: value.item() for name, value in metrics.items() if name.startswith("loss/")}


def replace_deter(batch: Any, dtype: torch.dtype) -> Any:
    """The batch with its stored state in another dtype: the same values."""
    return replace(batch, deter=batch.deter.to(dtype))


def norm(tensors: list[torch.Tensor]) -> float:
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt().item()
