"""Imagined trajectories written where the heads read them, in as few launches as the layers allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from genreward_fast.agent.core import by_block
from genreward_fast.agent.heads import Actor
from genreward_fast.agent.nets import NORM_EPS, Dense
from genreward_fast.agent.rssm import RSSM, Imagined, State
from genreward_fast.agent.sampling import Sampler
from genreward_fast.kernels.actor_tail import TailWeights, actor_tail
from genreward_fast.kernels.gru_gates import gru_gates
from genreward_fast.kernels.prior_sample import PriorWeights, prior_sample
from genreward_fast.kernels.rmsnorm_silu import rmsnorm_silu_forward


@torch.no_grad()
def imagine(rssm: RSSM, actor: Actor, dreamed: Tensor, sampler: Sampler) -> Imagined:
    """Rolls the prior forward under the policy, without gradients: what `RSSM.imagine` computes.

    Args:
        rssm, actor: whose hidden layers are equally wide.
        dreamed: (H + 1, N, features) contiguous, in the dtype to compute in: the features of the first states are
            there, those of the imagined ones are written after them.
        sampler: draws all latents and actions.
    """
    steps, count, dtype = len(dreamed) - 1, dreamed.shape[1], dreamed.dtype
    size, hidden, blocks, latents = rssm.deter, rssm.hidden_size, rssm.blocks, rssm.stoch
    layers, prior = ([cast(Dense, dense) for dense in mlp] for mlp in (actor.mlp, rssm.prior_mlp))
    head_weight, _, head_bias = actor.joined()
    policy = TailWeights(
        scales=_scales([rssm.deter_in, rssm.stoch_in, *layers]),
        layers=_stacked(layers[1:], dtype),
        head=(head_weight, head_bias),
        embed=(*_casts(rssm.action_in, dtype), rssm.action_in.norm.scale),
        bounds=(actor.min_std, actor.max_std),
        eps=NORM_EPS,
    )
    next_latents = PriorWeights(
        scales=_scales(prior),
        layers=_stacked(prior[1:], dtype),
        output=(rssm.prior_logit.cast("weight", dtype), rssm.prior_logit.cast("bias", dtype)),
        unimix=rssm.unimix,
        eps=NORM_EPS,
    )
    # One product for what reads the deter: the prior of a step, embedding and policy of the next. Another for what
    # reads the latents. The policy's first layer is the sum of its shares in both.
    to_prior, prior_bias = _casts(prior[0], dtype)
    to_policy, policy_bias = _casts(layers[0], dtype)
    embed_deter, deter_bias = _casts(rssm.deter_in, dtype)
    embed_stoch, stoch_bias = _casts(rssm.stoch_in, dtype)
    of_deter = torch.cat([to_prior, embed_deter, to_policy[:, :size]]).t()
    of_deter_bias = torch.cat([prior_bias, deter_bias, torch.zeros_like(policy_bias)])
    of_stoch, of_stoch_bias = torch.cat([embed_stoch, to_policy[:, size:]]).t(), torch.cat([stoch_bias, policy_bias])
    to_hidden, piece = rssm.hidden.cast("weight", dtype), size // blocks
    own = to_hidden[:, :piece]
    shared = to_hidden[:, piece:].transpose(0, 1).reshape(-1, size)
    hidden_bias, to_gates = rssm.hidden.cast("bias", dtype), rssm.gates.cast("weight", dtype)
    gates_bias = rssm.gates.cast("bias", dtype)
    shape = (count, steps, policy.embed[0].shape[1])
    uniform, index = map(_time_first, sampler.sequence("prior", (count, steps, latents), dreamed.device))
    noise, forced = map(_time_first, sampler.noise(shape, dreamed.device))

    actions = dreamed.new_empty(steps, count, shape[2], dtype=torch.float32) if forced is None else forced
    logits = dreamed.new_empty(steps, count, latents, rssm.classes)
    from_deter, embedded = dreamed.new_empty(2, count, 3 * hidden).unbind()
    from_stoch = dreamed.new_empty(count, 2 * hidden)
    before, active = dreamed.new_empty(2, count, size).unbind()
    gates = dreamed.new_empty(count, 3 * size)
    drawn = []
    torch.addmm(of_deter_bias, dreamed[0, :, :size], of_deter, out=from_deter)
    for t in range(steps):
        deter, after = dreamed[t, :, :size], dreamed[t + 1, :, :size]
        torch.addmm(of_stoch_bias, dreamed[t, :, size:], of_stoch, out=from_stoch)
        actor_tail(
            policy, from_deter[:, hidden:], from_stoch, None if noise is None else noise[t], actions[t], embedded
        )
        torch.addmm(hidden_bias, embedded, shared, out=before)
        by_block(before, blocks).baddbmm_(by_block(deter, blocks), own)
        rmsnorm_silu_forward(before, rssm.hidden_norm.scale, NORM_EPS, active)
        torch.bmm(by_block(active, blocks), to_gates, out=by_block(gates, blocks))
        gru_gates(gates, gates_bias, deter, blocks, after)
        torch.addmm(of_deter_bias, after, of_deter, out=from_deter)
        classes = prior_sample(
            next_latents,
            from_deter[:, :hidden],
            None if uniform is None else uniform[t],
            None if index is None else index[t],
            logits[t],
            dreamed[t + 1, :, size:].unflatten(1, (latents, -1)),
        )
        drawn.append(classes)
    if uniform is not None:
        sampler.drew("prior", torch.stack(drawn, 1))
    if noise is not None:
        sampler.acted(actions.transpose(0, 1))
    imagined = dreamed[1:].transpose(0, 1)
    state = State(imagined[..., :size], imagined[..., size:].unflatten(-1, (latents, -1)))
    return Imagined(state, actions.transpose(0, 1), logits.transpose(0, 1))


def _scales(layers: Sequence[Dense]) -> Tensor:
    """(layers, units) of their norms."""
    return torch.stack([layer.norm.scale for layer in layers])


def _stacked(layers: Sequence[Dense], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights and biases of layers that are as wide as their inputs."""
    weights, biases = zip(*(_casts(layer, dtype) for layer in layers))
    return torch.stack(weights), torch.stack(biases)


def _casts(layer: Dense, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and bias in `dtype`."""
    return layer.linear.cast("weight", dtype), layer.linear.cast("bias", dtype)


def _time_first(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.transpose(0, 1).contiguous()
