"""Filtering a sequence with the recurrent model, with a gradient written by hand.

The reverse loop computes only what the step before needs. The gradients by weights follow it, each as one matrix
product over all steps, with one rounding, instead of one thin product and one addition for every step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genreward_fast.agent.core import CoreValues, CoreWeights, core_backward, core_forward, weight_gradients
from genreward_fast.agent.nets import NORM_EPS
from genreward_fast.agent.sampling import Sampler
from genreward_fast.kernels.column_sums import column_sums
from genreward_fast.kernels.latent_sample import latent_sample_backward
from genreward_fast.kernels.rmsnorm_silu import rmsnorm_silu_backward, rmsnorm_silu_forward


def scan(
    sampler: Sampler,
    unimix: float,
    reset: Tensor,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    evidence: Tensor,
    posterior: tuple[Tensor, Tensor, Tensor, Tensor],
    core: CoreWeights,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """T steps of B sequences; S latents of K classes, F = S * K.

    Args:
        sampler: draws "posterior" latents.
        unimix: the uniform distribution's share in them.
        reset: (B, T) bool; where true, the state before the row is zero.
        deter: (B, D), stoch: (B, S, K), before the first row.
        action: (B, T, D), the action's share of the hidden layer, bias included.
        evidence: (B, T, H), the image's share of the posterior's layer, bias included.
        posterior: what the posterior's layer takes of deter, (H, D); its norm's scale (H,) float32; the weight (F, H)
            and bias (F,) of the logits.
        core: the GRU's weights.

    Returns:
        (B, T, D) deter; (B, T, S, K) one-hot stoch, with straight-through gradients; (B, T, S, K) logits; all three in
        the dtype of deter; (B, T, S) int64 indices of the drawn classes.
    """
    return _Scan.apply(sampler, unimix, reset, deter, stoch, action, evidence, *posterior, *core.tensors())


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sampler: Sampler,
        unimix: float,
        reset: Tensor,
        deter: Tensor,
        stoch: Tensor,
        action: Tensor,
        evidence: Tensor,
        from_deter: Tensor,
        scale: Tensor,
        weight: Tensor,
        bias: Tensor,
        *core: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weights = CoreWeights(*core)
        batch, steps = reset.shape
        latents = stoch.shape[1:]
        # Everything lies step by step in memory, and in what a product adds to, its other summand stands already.
        fresh = reset.t().unsqueeze(-1)
        values = CoreValues.make(weights, _by_step(action))
        before, seen = _by_step(evidence), evidence.new_empty(steps, batch, evidence.shape[2])
        logits = bias.expand(steps, batch, -1).clone(memory_format=torch.contiguous_format)
        olds, deters = (deter.new_empty(steps, batch, deter.shape[1]) for _ in range(2))
        old_stochs, stochs = (torch.empty_like(logits) for _ in range(2))
        indices = torch.empty(steps, batch, latents[0], dtype=torch.int64, device=deter.device)
        stoch = stoch.flatten(1)
        zero = deter.new_zeros(())
        for t in range(steps):
            torch.where(fresh[t], zero, deter, out=olds[t])
            torch.where(fresh[t], zero, stoch, out=old_stochs[t])
            core_forward(weights, olds[t], old_stochs[t], values.step(t), deters[t])
            deter = deters[t]
            before[t].addmm_(deter, from_deter.t())
            rmsnorm_silu_forward(before[t], scale, NORM_EPS, seen[t])
            logits[t].addmm_(seen[t], weight.t())
            indices[t], onehot = sampler.latent(logits[t].unflatten(-1, latents), unimix, "posterior", t)
            stochs[t] = onehot.flatten(1)
            stoch = stochs[t]
        ctx.save_for_backward(fresh, from_deter, scale, weight, *core)
        ctx.kept = values, before, seen, logits, olds, deters, old_stochs
        ctx.unimix, ctx.latents = unimix, latents
        index = indices.transpose(0, 1).contiguous()
        ctx.mark_non_differentiable(index)
        return (
            deters.transpose(0, 1).contiguous(),
            stochs.transpose(0, 1).contiguous().unflatten(-1, latents),
            logits.transpose(0, 1).contiguous().unflatten(-1, latents),
            index,
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_deters: Tensor, by_stochs: Tensor, by_logits: Tensor, _: Any) -> tuple[Any, ...]:
        fresh, from_deter, scale, weight, *core = ctx.saved_tensors
        weights = CoreWeights(*core)
        values, before, seen, logits, olds, deters, old_stochs = ctx.kept
        by_deters = _by_step(by_deters)
        by_stochs, by_logits = (_by_step(x.flatten(2)) for x in (by_stochs, by_logits))
        grads = CoreValues(
            *(torch.empty_like(x) for x in (values.embedded, values.shared, values.hidden, values.active, values.gates))
        )
        by_before, by_seen, by_flat = (torch.empty_like(x) for x in (before, seen, logits))
        by_deter, by_stoch = torch.zeros_like(by_deters[0]), torch.zeros_like(by_stochs[0])

        def pieces(flat: Tensor) -> Tensor:
            return flat.unflatten(-1, ctx.latents)

        for t in reversed(range(len(logits))):
            latent_sample_backward(
                pieces(by_stochs[t]),
                pieces(by_stoch),
                pieces(by_logits[t]),
                pieces(logits[t]),
                ctx.unimix,
                pieces(by_flat[t]),
            )
            torch.mm(by_flat[t], weight, out=by_seen[t])
            rmsnorm_silu_backward(by_seen[t], before[t], scale, NORM_EPS, by_before[t], sums=False)
            by_deter.addmm_(by_before[t], from_deter)
            by_deter, by_stoch = core_backward(weights, by_deters[t], by_deter, olds[t], values.step(t), grads.step(t))
            by_deter.masked_fill_(fresh[t], 0)
            by_stoch.masked_fill_(fresh[t], 0)

        def rows(x: Tensor) -> Tensor:
            return x.flatten(0, 1)

        def all_rows(x: CoreValues) -> CoreValues:
            return CoreValues(*map(rows, (x.embedded, x.shared, x.hidden, x.active, x.gates)))

        _, sums = rmsnorm_silu_backward(rows(by_seen), rows(before), scale, NORM_EPS)
        assert sums is not None
        return (
            None,
            None,
            None,
            by_deter,
            pieces(by_stoch),
            grads.hidden.transpose(0, 1),
            by_before.transpose(0, 1),
            rows(by_before).t() @ rows(deters),
            sums[0],
            rows(by_flat).t() @ rows(seen),
            column_sums(rows(by_flat), by_flat.dtype),
            *weight_gradients(weights, rows(olds), rows(old_stochs), all_rows(values), all_rows(grads)),
        )


def _by_step(x: Tensor) -> Tensor:
    """A copy of (B, T, ...) that lies in memory as (T, B, ...)."""
    return x.transpose(0, 1).clone(memory_format=torch.contiguous_format)
