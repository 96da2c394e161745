"""From the first layer of the recurrent model's prior to the drawn latents, in one launch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genreward_fast.kernels.dense_rows import WARPS, dense_layers, fits
from genreward_fast.kernels.latent_sample import latent_sample, latent_sample_reference
from genreward_fast.kernels.rmsnorm_silu import rmsnorm_silu, rmsnorm_silu_reference
from genreward_fast.kernels.rssm_tiles import ROWS, chunk, exact
from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton

COLUMNS = 256
"""Most logits of a program, classes padded. Several programs share the logits of 16 rows and each computes the layers
before them: with 1024 rows there are fewer programs than multiprocessors otherwise."""


@dataclass(frozen=True)
class PriorWeights:
    """What stays the same from step to step; all but `scales` in the dtype to compute in, contiguous.

    Attributes:
        scales: (1 + L, H) float32, of the norms of the first layer and of L further ones.
        layers: weights (L, H, H) and biases (L, H) of the further layers.
        output: weight (S * K, H) and bias (S * K,) of the logits.
        unimix: the uniform distribution's share.
        eps: of all norms.
    """

    scales: Tensor
    layers: tuple[Tensor, Tensor]
    output: tuple[Tensor, Tensor]
    unimix: float
    eps: float


def prior_sample_reference(
    weights: PriorWeights, x: Tensor, uniform: Tensor | None, index: Tensor | None, logits: Tensor, out: Tensor
) -> Tensor:
    """What `prior_sample` computes, in plain PyTorch."""
    hidden = dense_layers(x, weights.scales, weights.layers, weights.eps, rmsnorm_silu_reference)
    hidden = rmsnorm_silu_reference(hidden, weights.scales[-1], weights.eps)
    logits.copy_(F.linear(hidden, *weights.output).view(logits.shape))
    if uniform is not None:
        index, onehot = latent_sample_reference(logits, uniform, weights.unimix)
        out.copy_(onehot)
        return index
    assert index is not None
    return _take(index, out)


def prior_sample_launches(
    weights: PriorWeights, x: Tensor, uniform: Tensor | None, index: Tensor | None, logits: Tensor, out: Tensor
) -> Tensor:
    """`prior_sample` with a launch for each product and each norm, for any width."""
    hidden = dense_layers(x, weights.scales, weights.layers, weights.eps, rmsnorm_silu)
    hidden, (weight, bias) = rmsnorm_silu(hidden, weights.scales[-1], weights.eps), weights.output
    torch.addmm(bias, hidden, weight.t(), out=logits.flatten(1))
    if uniform is not None:
        return latent_sample(logits, uniform, weights.unimix, out)[0]
    assert index is not None
    return _take(index, out)


def prior_sample(
    weights: PriorWeights, x: Tensor, uniform: Tensor | None, index: Tensor | None, logits: Tensor, out: Tensor
) -> Tensor:
    """The prior's layers, its logits, and a draw from them as `latent_sample` makes it; or the classes that are given.

    One launch where H fits (`dense_rows.fits`), `prior_sample_launches` else. Without gradients.

    Args:
        weights: of all layers.
        x: (N, H), rows may be strided, of any floating dtype: the prior's first layer before its norm.
        uniform: (N, S) float32 contiguous in [0, 1), one number for each draw; None takes `index`.
        index: (N, S) int64 contiguous, the classes to take; not read if there is `uniform`.
        logits: (N, S, K) contiguous, where to write the raw logits.
        out: (N, S, K), whose first axis alone may be strided: where to write the one-hots.

    Returns:
        (N, S) int64, the classes drawn or taken.
    """
    if not runs_triton(x, weights.scales, logits, out):
        return prior_sample_reference(weights, x, uniform, index, logits, out)
    (rows, latents, classes), units = logits.shape, x.shape[1]
    if not fits(x, units):
        return prior_sample_launches(weights, x, uniform, index, logits, out)
    width, size = padded(classes), padded(units)
    # At least 16 columns, which a product must have.
    per_program = max(1, ROWS // width, min(COLUMNS // width, padded(latents)))
    columns = per_program * width
    drawing = index if uniform is None else uniform
    assert drawing is not None
    drawn = drawing if uniform is None else torch.empty(rows, latents, dtype=torch.int64, device=x.device)
    _forward[(-(-rows // ROWS), -(-latents // per_program))](
        x, x.stride(0), weights.scales, *weights.layers, *weights.output, drawing, drawn, logits, out, out.stride(0),
        rows, weights.eps, weights.unimix,
        LAYERS=len(weights.layers[0]), UNITS=units, LATENTS=latents, CLASSES=classes, PADDED=width, PER=per_program,
        FORCED=uniform is None, ROWS=ROWS, SIZE=size, CHUNK=chunk(units, size, x.dtype),
        LOGITS_CHUNK=chunk(units, columns, x.dtype), EXACT=exact(x), num_warps=WARPS,
    )  # fmt: skip
    return drawn


def _take(index: Tensor, out: Tensor) -> Tensor:
    """The one-hots of given classes."""
    out.copy_(index.unsqueeze(-1) == torch.arange(out.shape[-1], device=out.device))
    return index


if HAS_TRITON:
    import triton
    import triton.language as tl

    from genreward_fast.kernels.dense_rows import dense_rows, linear_rows
    from genreward_fast.kernels.latent_sample import drawn_classes
    from genreward_fast.kernels.normed_rows import normed_rows

    @triton.jit
    def _forward(
        x, x_stride, scales, weight, bias, output, output_bias, drawing, index, logits, out, out_stride, rows, eps,
        unimix,
        LAYERS: tl.constexpr, UNITS: tl.constexpr, LATENTS: tl.constexpr, CLASSES: tl.constexpr, PADDED: tl.constexpr,
        PER: tl.constexpr, FORCED: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr,
        LOGITS_CHUNK: tl.constexpr, EXACT: tl.constexpr,
    ):  # fmt: skip
        """Program (block, part): some rows, and PER latents of them, each with its classes padded to a power of two."""
        kind = x.dtype.element_ty
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column, inside = tl.arange(0, SIZE), row < rows
        real, wide = column < UNITS, row.to(tl.int64)[:, None]
        value = tl.load(x + wide * x_stride + column[None, :], mask=inside[:, None] & real[None, :], other=0.0)
        factor = tl.load(scales + column, mask=real, other=0.0)
        slot, first = tl.arange(0, PER * PADDED), tl.program_id(1) * PER
        latent, klass = first + slot // PADDED, slot % PADDED
        target, wanted = latent * CLASSES + klass, (klass < CLASSES) & (latent < LATENTS)
        # What does not depend on the layers is asked for before them.
        offset = tl.load(output_bias + target, mask=wanted, other=0.0).to(tl.float32)
        mine = first + tl.arange(0, PER)[None, :]
        exists = inside[:, None] & (mine < LATENTS)
        given = tl.load(drawing + wide * LATENTS + mine, mask=exists, other=0)
        hidden = normed_rows(value.to(tl.float32), factor, UNITS, eps).to(kind)
        hidden = dense_rows(hidden, weight, bias, scales + UNITS, column, real, eps, LAYERS, UNITS, CHUNK, EXACT)
        acc = linear_rows(hidden, output, target, wanted, UNITS, LOGITS_CHUNK, EXACT)
        y = (acc + offset[None, :]).to(kind)
        keep = inside[:, None] & wanted[None, :]
        tl.store(logits + wide * (LATENTS * CLASSES) + target[None, :], y, mask=keep)
        if FORCED:
            drawn = given.to(tl.int32)
        else:
            raw = tl.reshape(tl.where(wanted[None, :], y.to(tl.float32), -float("inf")), [ROWS, PER, PADDED])
            drawn = drawn_classes(raw, given, unimix, CLASSES)
            tl.store(index + wide * LATENTS + mine, drawn.to(tl.int64), mask=exists)
        spread = tl.reshape(tl.broadcast_to(drawn[:, :, None], [ROWS, PER, PADDED]), [ROWS, PER * PADDED])
        hit = tl.where(spread == klass[None, :], 1.0, 0.0)
        tl.store(out + wide * out_stride + target[None, :], hit.to(kind), mask=keep)
