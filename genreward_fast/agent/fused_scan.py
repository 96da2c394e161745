"""`scan` by the kernels of `rssm_observe`: ten launches for a step there and back."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genreward_fast.agent.beside import beside, join
from genreward_fast.agent.core import by_block
from genreward_fast.agent.nets import NORM_EPS
from genreward_fast.agent.sampling import Sampler
from genreward_fast.kernels import rssm_observe as step
from genreward_fast.kernels import rssm_observe_backward as back
from genreward_fast.kernels.column_sums import column_sums
from genreward_fast.kernels.latent_sample import latent_sample_backward
from genreward_fast.kernels.rmsnorm_silu import rmsnorm_silu_backward, rmsnorm_silu_forward
from genreward_fast.kernels.rssm_observe_backward import StepGradients
from genreward_fast.kernels.rssm_step import StepValues, StepWeights

BESIDE = "world model"
"""The stream on which the gradient is prepared as soon as there are values, and on which it ends in the weights'."""


def fused_scan(
    sampler: Sampler,
    unimix: float,
    reset: Tensor,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    evidence: Tensor,
    hidden_bias: Tensor,
    weights: StepWeights,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """T steps of B sequences; S latents of K classes.

    Args:
        sampler: draws all posterior latents at once.
        unimix: the uniform distribution's share in them.
        reset: (B, T) bool; where true, the state before the row is zero.
        deter: (B, D), stoch: (B, S, K), before the first row; neither gets a gradient.
        action: (B, T, H), embedded.
        evidence: (B, T, H), the image's share of the posterior's layer, bias included.
        hidden_bias: (D,) of the hidden layer.
        weights: the rest.

    Returns:
        As `scan`: (B, T, D) deter; (B, T, S, K) one-hot stoch, with straight-through gradients; (B, T, S, K) logits;
        all three in the dtype of deter; (B, T, S) int64 indices of the drawn classes.
    """
    shape = (*reset.shape, *stoch.shape[1:])
    uniform, forced = sampler.sequence("posterior", shape[:3], deter.device)
    tensors = {field.name: getattr(weights, field.name) for field in fields(weights)}
    learns = torch.is_grad_enabled()
    if learns:
        # Autograd goes on with a node's gradients on the stream of its forward. Part of a weight is none: what joins
        # its gradient to the rest would make the main stream wait.
        own = {name: tensor for name, tensor in tensors.items() if name != "from_deter"}
        with beside(BESIDE, *own.values()):
            tensors |= dict(zip(own, _Weights.apply(*own.values())))
    deters, stochs, logits, index = _FusedScan.apply(
        uniform,
        forced,
        unimix,
        learns,
        reset,
        deter,
        stoch.flatten(1),
        action,
        evidence,
        hidden_bias,
        *tensors.values(),
    )
    if uniform is not None:
        sampler.drew("posterior", index)
    return deters, stochs.view(shape), logits.view(shape), index


class _Weights(torch.autograd.Function):
    """The weights as they are."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


class _FusedScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        uniform: Tensor | None,
        forced: Tensor | None,
        unimix: float,
        learns: bool,
        reset: Tensor,
        deter: Tensor,
        stoch: Tensor,
        action: Tensor,
        evidence: Tensor,
        hidden_bias: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weights = StepWeights(*tensors)
        (batch, steps), action = reset.shape, action.contiguous()
        latents = uniform.shape[2] if forced is None else forced.shape[2]  # type: ignore[union-attr]
        values = StepValues.empty(weights, batch, steps, latents)
        if forced is not None:
            values.index.copy_(forced)
        share = hidden_bias.expand(batch * steps, -1).clone(memory_format=torch.contiguous_format)
        blocks = weights.blocks
        from_action = weights.hidden[:, -action.shape[2] :]
        by_block(share, blocks).baddbmm_(action.flatten(0, 1).expand(blocks, -1, -1), from_action)
        share = share.view(batch, steps, -1)
        before, latent = deter, stoch
        size = action.shape[2]
        step.project(weights, deter, None, reset[:, 0], values, -1)
        for t in range(steps):
            step.stoch_embed(weights, latent, reset[:, t], values.embedded[:, t, size:])
            step.hidden(weights, before, reset[:, t], share[:, t], values, t)
            step.gates(weights, before, reset[:, t], values, t)
            before = values.deter[:, t]
            step.project(weights, before, evidence[:, t], reset[:, t + 1] if t + 1 < steps else None, values, t)
            step.sample(weights, unimix, None if uniform is None else uniform[:, t], values, t)
            latent = values.stoch[:, t]
        # Outputs are among these, so that `ctx` must not hold them itself: they would never be freed.
        kept = [getattr(values, field.name) for field in fields(values)]
        ctx.save_for_backward(reset, deter, stoch, action, *kept, *tensors)
        ctx.unimix = unimix
        if learns:
            with beside(BESIDE, values.evidence, values.hidden, values.embedded):
                ctx.grads = StepGradients.prepare(weights, values)
        ctx.mark_non_differentiable(values.index)
        return values.deter, values.stoch, values.logits, values.index

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_deter: Tensor, by_stoch: Tensor, by_logits: Tensor, _: Any) -> tuple[Any, ...]:
        reset, deter, stoch, action, *saved = ctx.saved_tensors
        # The kernels take strided rows, but autograd gives the gradient of a sum as one number expanded.
        by_deter, by_stoch, by_logits = (x.contiguous() for x in (by_deter, by_stoch, by_logits))
        count = len(fields(StepValues))
        values, weights = StepValues(*saved[:count]), StepWeights(*saved[count:])
        grads, ctx.grads = ctx.grads, None
        if grads is None:  # the second time
            grads = StepGradients.prepare(weights, values)
        join(BESIDE, deter.device)
        steps, latents = reset.shape[1], values.index.shape[2]

        def last(x: Tensor) -> Tensor:
            return x[:, -1].unflatten(-1, (latents, -1)).contiguous()

        given, end = last(by_stoch), last(grads.logits)
        latent_sample_backward(given, torch.zeros_like(given), last(by_logits), last(values.logits), ctx.unimix, end)
        grads.logits[:, -1] = end.flatten(1)
        for t in reversed(range(steps)):
            old, later = values.deter[:, t - 1] if t else deter, reset[:, t + 1] if t + 1 < steps else None
            back.seen(weights, grads, t)
            back.deter(weights, by_deter[:, t], old, reset[:, t], later, values, grads, t)
            back.gates(weights, grads, t)
            back.hidden(weights, reset[:, t], grads, t)
            if t:
                outside = by_stoch[:, t - 1], by_logits[:, t - 1]
                back.embedded(weights, ctx.unimix, *outside, reset[:, t], values, grads, t)
        by_inputs, by_weights = _gradients(weights, reset, deter, stoch, action, values, grads)
        return *[None] * 7, *by_inputs, *by_weights


def _gradients(
    weights: StepWeights,
    reset: Tensor,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    values: StepValues,
    grads: StepGradients,
) -> tuple[list[Tensor], list[Tensor]]:
    """Those by the embedded action, the evidence and the hidden layer's bias; and those by `weights` in their order,
    nearly all on another stream, since only the optimiser waits for them."""
    size, blocks = weights.deter_in.shape[0], weights.blocks
    piece = deter.shape[1] // blocks

    def rows(x: Tensor) -> Tensor:
        return x.flatten(0, 1)

    def old(first: Tensor, following: Tensor) -> Tensor:
        shifted = torch.cat([first.unsqueeze(1), following[:, :-1]], 1)
        return rows(shifted.masked_fill_(reset.unsqueeze(-1), 0))

    def active(x: Tensor, scale: Tensor) -> Tensor:
        out = torch.empty_like(x)
        rmsnorm_silu_forward(x, scale, NORM_EPS, out)
        return out

    def by_norm(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        by_x, sums = rmsnorm_silu_backward(rows(grad), rows(x), scale, NORM_EPS)
        assert sums is not None
        return by_x, sums

    by_evidence, posterior_sums = by_norm(grads.seen, values.evidence, weights.posterior_scale)
    by_hidden, hidden_sums = by_norm(grads.active, values.hidden, weights.hidden_scale)
    from_action = weights.hidden[:, -size:].transpose(1, 2).reshape(-1, size)
    by_action = (by_hidden @ from_action).view_as(action)
    by_from_deter = by_evidence.t() @ rows(values.deter)
    reads = [value for of in (values, grads, grads.embedded) for value in vars(of).values() if torch.is_tensor(value)]
    with beside(BESIDE, *reads, reset, deter, stoch, action, by_hidden):
        in_scale = grads.embedded.scale
        by_embedded, in_sums = by_norm(grads.shared, values.embedded, in_scale)
        by_gates, by_logits = rows(grads.gates), rows(grads.logits)
        # All blocks read the same embedded deter, stoch and action.
        shared = torch.cat([active(rows(values.embedded), in_scale), rows(action)], 1)
        deters, stochs = old(deter, values.deter), old(stoch, values.stoch)
        hidden, seen = (
            active(rows(values.hidden), weights.hidden_scale),
            active(rows(values.evidence), weights.posterior_scale),
        )
        by_weight = torch.empty_like(weights.hidden, memory_format=torch.contiguous_format)
        pieces = by_block(by_hidden, blocks)
        torch.bmm(by_block(deters, blocks).transpose(1, 2), pieces, out=by_weight[:, :piece])
        torch.bmm(shared.t().expand(blocks, -1, -1), pieces, out=by_weight[:, piece:])
        by_weights = StepWeights(
            deter_in=by_embedded[:, :size].t() @ deters,
            # Rounded here: else autograd does it, on the stream of the scan, which does not wait for this one.
            deter_bias=in_sums[1, 0].to(weights.deter_bias.dtype),
            deter_scale=in_sums[0, 0],
            stoch_in=by_embedded[:, size:].t() @ stochs,
            stoch_bias=in_sums[1, 1].to(weights.stoch_bias.dtype),
            stoch_scale=in_sums[0, 1],
            hidden=by_weight,
            hidden_scale=hidden_sums[0],
            gates=torch.bmm(by_block(hidden, blocks).transpose(1, 2), by_block(by_gates, blocks)),
            gates_bias=column_sums(by_gates, by_gates.dtype),
            from_deter=by_from_deter,
            posterior_scale=posterior_sums[0],
            logit=by_logits.t() @ seen,
            logit_bias=column_sums(by_logits, by_logits.dtype),
        )
    gradients = list(vars(by_weights).values())
    assert [gradient.dtype for gradient in gradients] == [weight.dtype for weight in vars(weights).values()]
    return [by_action, by_evidence.view_as(values.evidence), hidden_sums[1]], gradients
