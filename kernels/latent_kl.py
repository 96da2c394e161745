"""KL losses between categorical latents with a share of the uniform distribution, and their entropies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genreward_fast.kernels.triton_support import HAS_TRITON, padded, rows_of, runs_triton, softmax, wide


def latent_kl_reference(
    posterior: Tensor, prior: Tensor, unimix: float, free_nats: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `latent_kl` computes, in plain float32 PyTorch."""
    post, pri = (softmax(wide(x)) * (1 - unimix) + unimix / x.shape[-1] for x in (posterior, prior))
    dyn, rep = (_divergence(p, q).clamp(min=free_nats) for p, q in ((post.detach(), pri), (post, pri.detach())))
    prior_entropy, posterior_entropy = (-(p * p.log()).sum((-2, -1)) for p in (pri.detach(), post.detach()))
    return dyn, rep, prior_entropy, posterior_entropy


def _divergence(probs: Tensor, other: Tensor) -> Tensor:
    return (probs * (probs.log() - other.log())).sum((-2, -1))


def latent_kl(
    posterior: Tensor, prior: Tensor, unimix: float, free_nats: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dynamics loss KL(sg(posterior) ‖ prior) and representation loss KL(posterior ‖ sg(prior)), at least `free_nats`.

    Where the divergence is below `free_nats`, it has no gradient.

    Args:
        posterior, prior: (..., stoch, classes) raw logits of any floating dtype, the same for both.
        unimix: the uniform distribution's share in both.

    Returns:
        Both losses, and the entropies of prior and posterior, the latter without gradients: (...) float32 each, in
        nats, summed over the latents.
    """
    if not runs_triton(posterior, prior) or posterior.numel() == 0:
        return latent_kl_reference(posterior, prior, unimix, free_nats)
    return _LatentKL.apply(posterior, prior, unimix, free_nats)


def _layout(latents: int, classes: int) -> tuple[dict[str, int], int]:
    """The tile of one program, which takes one row, and its warps."""
    width, depth = (padded(size) for size in (latents, classes))
    return {"LATENTS": width, "SIZE": depth}, max(1, min(8, width * depth // 512))


class _LatentKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, posterior: Tensor, prior: Tensor, unimix: float, free_nats: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        posterior, prior = posterior.contiguous(), prior.contiguous()
        ctx.save_for_backward(posterior, prior)
        ctx.options = unimix, free_nats
        shape = posterior.shape[:-2]
        dyn, rep, prior_entropy, posterior_entropy = (
            torch.empty(shape, dtype=torch.float32, device=posterior.device) for _ in range(4)
        )
        latents, classes = posterior.shape[-2:]
        tile, warps = _layout(latents, classes)
        _forward[(dyn.numel(),)](
            posterior,
            prior,
            dyn,
            rep,
            prior_entropy,
            posterior_entropy,
            latents,
            classes,
            unimix,
            free_nats,
            num_warps=warps,
            **tile,
        )
        ctx.mark_non_differentiable(prior_entropy, posterior_entropy)
        ctx.set_materialize_grads(False)
        return dyn, rep, prior_entropy, posterior_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_dyn: Tensor | None, by_rep: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        posterior, prior = ctx.saved_tensors
        by_posterior, by_prior = torch.empty_like(posterior), torch.empty_like(prior)
        (by_dyn, dyn_step), (by_rep, rep_step) = (rows_of(grad, prior) for grad in (by_dyn, by_rep))
        latents, classes = posterior.shape[-2:]
        tile, warps = _layout(latents, classes)
        _backward[(posterior.numel() // (latents * classes),)](
            by_dyn,
            dyn_step,
            by_rep,
            rep_step,
            posterior,
            prior,
            by_posterior,
            by_prior,
            latents,
            classes,
            *ctx.options,
            num_warps=warps,
            **tile,
        )
        return by_posterior, by_prior, None, None


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _softmax(logits, at, inside):
        value = tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)
        # Latents beyond the end keep finite numbers; classes beyond the end weigh nothing.
        value = tl.where(inside, value, -1e30)
        power = tl.exp(value - tl.max(value, 1)[:, None])
        return power / tl.sum(power, 1)[:, None]

    @triton.jit
    def _mixed(probs, inside, unimix, classes):
        """With the uniform share; 1 outside, where logarithms then are 0."""
        return tl.where(inside, probs * (1.0 - unimix) + unimix / classes, 1.0)

    @triton.jit
    def _total(x, inside):
        return tl.sum(tl.sum(tl.where(inside, x, 0.0), 1), 0)

    @triton.jit
    def _forward(
        posterior,
        prior,
        dyn,
        rep,
        prior_entropy,
        posterior_entropy,
        latents,
        classes,
        unimix,
        free_nats,
        LATENTS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        latent, column = tl.arange(0, LATENTS), tl.arange(0, SIZE)
        inside = (latent < latents)[:, None] & (column < classes)[None, :]
        at = (row * latents + latent)[:, None] * classes + column[None, :]
        post = _mixed(_softmax(posterior, at, inside), inside, unimix, classes)
        pri = _mixed(_softmax(prior, at, inside), inside, unimix, classes)
        post_log, pri_log = tl.log(post), tl.log(pri)
        divergence = _total(post * (post_log - pri_log), inside)
        # A comparison that NaN fails keeps it.
        result = tl.where(divergence < free_nats, free_nats, divergence)
        tl.store(dyn + row, result)
        tl.store(rep + row, result)
        tl.store(prior_entropy + row, -_total(pri * pri_log, inside))
        tl.store(posterior_entropy + row, -_total(post * post_log, inside))

    @triton.jit
    def _backward(
        by_dyn,
        dyn_step,
        by_rep,
        rep_step,
        posterior,
        prior,
        by_posterior,
        by_prior,
        latents,
        classes,
        unimix,
        free_nats,
        LATENTS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        latent, column = tl.arange(0, LATENTS), tl.arange(0, SIZE)
        inside = (latent < latents)[:, None] & (column < classes)[None, :]
        at = (row * latents + latent)[:, None] * classes + column[None, :]
        post_soft, pri_soft = _softmax(posterior, at, inside), _softmax(prior, at, inside)
        post, pri = _mixed(post_soft, inside, unimix, classes), _mixed(pri_soft, inside, unimix, classes)
        ratio = tl.log(post) - tl.log(pri)
        free = _total(post * ratio, inside) < free_nats
        grad = tl.where(free, 0.0, tl.load(by_dyn + row * dyn_step)) * (1.0 - unimix)
        by_probs = tl.where(inside, -post / pri, 0.0)
        along = tl.sum(pri_soft * by_probs, 1)
        result = grad * pri_soft * (by_probs - along[:, None])
        tl.store(by_prior + at, result.to(by_prior.dtype.element_ty), mask=inside)
        grad = tl.where(free, 0.0, tl.load(by_rep + row * rep_step)) * (1.0 - unimix)
        by_probs = tl.where(inside, ratio, 0.0)
        along = tl.sum(post_soft * by_probs, 1)
        result = grad * post_soft * (by_probs - along[:, None])
        tl.store(by_posterior + at, result.to(by_posterior.dtype.element_ty), mask=inside)
