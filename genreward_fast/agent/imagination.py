"""Imagined trajectories written where the heads read them, in as few launches as the layers allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from genreward_fast.agent.core import by_block
from genreward_fast.agent.heads import Actor
from genreward_fast.agent.nets import NORM_EPS, Dense
from genreward_fast.agent.rssm import RSSM, Imagined, State
from genreward_fast.agent.sampling import Sampler
from genreward_fast.kernels.actor_tail import actor_tail
from genreward_fast.kernels.gru_gates import gru_gates
from genreward_fast.kernels.prior_sample import prior_sample
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
    (steps, count, width), dtype = dreamed.shape, dreamed.dtype
    steps -= 1
    size, hidden, blocks, latents = rssm.deter, rssm.hidden_size, rssm.blocks, rssm.stoch
    layers, prior = ([cast(Dense, dense) for dense in mlp] for mlp in (actor.mlp, rssm.prior_mlp))
    inputs = [rssm.deter_in, rssm.stoch_in, layers[0]]
    # What state and policy take of the features is one product; the zeros cost less than two launches more.
    weight = dreamed.new_zeros(3 * hidden, width)
    weight[:hidden, :size] = inputs[0].linear.cast("weight", dtype)
    weight[hidden : 2 * hidden, size:] = inputs[1].linear.cast("weight", dtype)
    weight[2 * hidden :] = inputs[2].linear.cast("weight", dtype)
    bias = torch.cat([layer.linear.cast("bias", dtype) for layer in inputs])
    scales, prior_scales = _scales([*inputs, *layers[1:]]), _scales(prior)
    further, prior_further = _stacked(layers[1:], dtype), _stacked(prior[1:], dtype)
    to_hidden, piece = rssm.hidden.cast("weight", dtype), size // blocks
    own = to_hidden[:, :piece]
    shared = to_hidden[:, piece:].transpose(0, 1).reshape(-1, size)
    hidden_bias, to_gates = rssm.hidden.cast("bias", dtype), rssm.gates.cast("weight", dtype)
    gates_bias = rssm.gates.cast("bias", dtype)
    action_in = rssm.action_in
    embed = action_in.linear.cast("weight", dtype), action_in.linear.cast("bias", dtype), action_in.norm.scale
    head_weight, _, head_bias = actor.joined()
    to_prior = prior[0].linear.cast("weight", dtype), prior[0].linear.cast("bias", dtype)
    to_logits = rssm.prior_logit.cast("weight", dtype), rssm.prior_logit.cast("bias", dtype)
    shape = (count, steps, embed[0].shape[1])
    uniform, index = map(_time_first, sampler.sequence("prior", (count, steps, latents), dreamed.device))
    noise, forced = map(_time_first, sampler.noise(shape, dreamed.device))

    actions = dreamed.new_empty(steps, count, embed[0].shape[1], dtype=torch.float32) if forced is None else forced
    logits = dreamed.new_empty(steps, count, latents, rssm.classes)
    joint, embedded = dreamed.new_empty(2, count, 3 * hidden).unbind()
    before, active = dreamed.new_empty(2, count, size).unbind()
    gates = dreamed.new_empty(count, 3 * size)
    drawn = []
    for t in range(steps):
        deter, after = dreamed[t, :, :size], dreamed[t + 1, :, :size]
        torch.addmm(bias, dreamed[t], weight.t(), out=joint)
        actor_tail(
            joint,
            scales,
            further,
            (head_weight, head_bias),
            None if noise is None else noise[t],
            actions[t],
            (actor.min_std, actor.max_std),
            embed,
            NORM_EPS,
            embedded,
        )
        torch.addmm(hidden_bias, embedded, shared, out=before)
        by_block(before, blocks).baddbmm_(by_block(deter, blocks), own)
        rmsnorm_silu_forward(before, rssm.hidden_norm.scale, NORM_EPS, active)
        torch.bmm(by_block(active, blocks), to_gates, out=by_block(gates, blocks))
        gru_gates(gates, gates_bias, deter, blocks, after)
        found = prior_sample(
            F.linear(after, *to_prior),
            prior_scales,
            prior_further,
            to_logits,
            None if uniform is None else uniform[t],
            None if index is None else index[t],
            rssm.unimix,
            NORM_EPS,
            logits[t],
            dreamed[t + 1, :, size:].unflatten(1, (latents, -1)),
        )
        drawn.append(found)
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
    weight, bias = (torch.stack([layer.linear.cast(name, dtype) for layer in layers]) for name in ("weight", "bias"))
    return weight, bias


def _time_first(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.transpose(0, 1).contiguous()
