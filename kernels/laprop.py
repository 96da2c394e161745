"""LaProp with adaptive gradient clipping on flat buffers: one pass that measures, one that updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genreward_fast.kernels.triton_support import HAS_TRITON, runs_triton, wide

ALIGN = 64
"""Every tensor of a flat buffer starts at a multiple of this many elements; what lies between two is zero."""
CHUNK = 8192
"""Elements that one program takes; four times as many beyond `LARGE` elements, so that sums stay short."""
LARGE = 1 << 26
_BLOCK = 2048


@dataclass(frozen=True)
class Segments:
    """Where tensors lie in a flat buffer.

    Attributes:
        sizes, starts: elements and first element of each tensor.
        total: elements of the buffer.
        chunk: elements that one program takes at most.
        chunks: (C, 4) int32 on the device: of each piece of a tensor its start and end in units of `ALIGN`, and the
            first piece of its tensor and the one after its last.
    """

    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    total: int
    chunk: int
    chunks: Tensor

    @classmethod
    def make(cls, sizes: Sequence[int], device: torch.device | str, chunk: int | None = None) -> Segments:
        """Tensors of the given sizes one after the other."""
        padded = [-(-size // ALIGN) for size in sizes]
        total = ALIGN * sum(padded)
        chunk = chunk or (CHUNK if total <= LARGE else 4 * CHUNK)
        step, start = chunk // ALIGN, 0
        starts: list[int] = []
        rows: list[tuple[int, int, int, int]] = []
        for units in padded:
            starts.append(ALIGN * start)
            first, count = len(rows), -(-units // step)
            ends = [min(start + units, start + step * (i + 1)) for i in range(count)]
            rows += [(start + step * i, end, first, first + count) for i, end in enumerate(ends)]
            start += units
        chunks = torch.tensor(rows, dtype=torch.int32).view(-1, 4).to(device)
        return cls(tuple(sizes), tuple(starts), total, chunk, chunks)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors, each flat, inside a buffer (total,)."""
        return [buffer[start : start + size] for start, size in zip(self.starts, self.sizes)]


@dataclass(frozen=True)
class Rates:
    """LaProp's constants; `agc` is the largest ratio of a gradient's norm to its tensor's, or to `agc_min`."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-20
    agc: float = 0.3
    agc_min: float = 1e-3


@dataclass(frozen=True)
class Follower:
    """A buffer that moves towards the last tensors of the parameters by `rate` after every update.

    Attributes:
        start: where these tensors begin in the parameters; the start of a tensor.
        values: (total - start,) float32.
        copy: of the same size in the dtype of the parameters' copy, or None.
    """

    start: int
    values: Tensor
    copy: Tensor | None
    rate: float


def clip_reference(gradient: Tensor, parameter: Tensor, segments: Segments, rates: Rates) -> tuple[Tensor, Tensor]:
    """The gradient with each tensor's norm at most agc · max(agc_min, ‖p‖), and the norm (0-d) of the whole before."""
    gradient = wide(gradient)
    norms = torch._foreach_norm(segments.views(gradient))
    limits = torch._foreach_norm(segments.views(parameter))
    ratio = torch.stack(norms) / (torch.stack(limits).clamp(min=rates.agc_min) * rates.agc)
    clipped = gradient.clone()
    torch._foreach_mul_(segments.views(clipped), list((1 / ratio.clamp(min=1)).unbind()))
    return clipped, torch.stack(norms).norm()


def laprop_reference(
    gradient: Tensor,
    parameter: Tensor,
    mu: Tensor,
    nu: Tensor,
    segments: Segments,
    rate: Tensor,
    correction: Tensor,
    rates: Rates,
    copy: Tensor | None = None,
    follower: Follower | None = None,
) -> Tensor:
    """What `laprop` computes, in plain PyTorch."""
    clipped, norm = clip_reference(gradient, parameter, segments, rates)
    nu.mul_(rates.beta2).addcmul_(clipped, clipped, value=1 - rates.beta2)
    clipped.div_((nu / correction).sqrt_().add_(rates.eps))
    mu.mul_(rates.beta1).add_(clipped, alpha=1 - rates.beta1)
    parameter.add_(mu * rate)
    if copy is not None:
        copy.copy_(parameter)
    if follower is not None:
        follower.values.lerp_(parameter[follower.start :], follower.rate)
        if follower.copy is not None:
            follower.copy.copy_(follower.values)
    return norm


def laprop(
    gradient: Tensor,
    parameter: Tensor,
    mu: Tensor,
    nu: Tensor,
    segments: Segments,
    rate: Tensor,
    correction: Tensor,
    rates: Rates,
    copy: Tensor | None = None,
    follower: Follower | None = None,
) -> Tensor:
    """One update in place; for each tensor of the buffers

    g ← g / max(1, ‖g‖ / (agc · max(agc_min, ‖p‖))); ν ← β₂ν + (1 - β₂)g²; μ ← β₁μ + (1 - β₁) g / (√(ν / correction) +
    eps); p ← p + rate · μ. Denormal numbers are kept: eps is far below the normal ones. A NaN in a gradient makes its
    whole tensor NaN. The same inputs give the same bits.

    Args:
        gradient: (total,) float32 or bfloat16, zero between tensors; left as it is.
        parameter, mu, nu: (total,) float32, zero between tensors.
        segments: where the tensors lie.
        rate: () float32: minus the learning rate over the bias correction of μ.
        correction: () float32: the bias correction of ν.
        rates: constants.
        copy: (total,) of a floating dtype: the new parameters are written here, too.
        follower: what moves towards the new parameters.

    Returns:
        () float32, the norm of the whole gradient before clipping.
    """
    if not runs_triton(gradient, parameter):
        return laprop_reference(gradient, parameter, mu, nu, segments, rate, correction, rates, copy, follower)
    count = len(segments.chunks)
    partial = torch.empty(2, count, dtype=torch.float32, device=parameter.device)
    norm = torch.empty((), dtype=torch.float32, device=parameter.device)
    grid, shape = (count,), {"CHUNK": segments.chunk, "BLOCK": _BLOCK, "num_warps": 8}
    _measure[grid](gradient, parameter, segments.chunks, partial, count, **shape)
    _update[grid](
        gradient,
        parameter,
        mu,
        nu,
        parameter if copy is None else copy,
        parameter if follower is None else follower.values,
        parameter if follower is None or follower.copy is None else follower.copy,
        segments.chunks,
        partial,
        norm,
        rate,
        correction,
        count,
        0 if follower is None else follower.start // ALIGN,
        rates.beta1,
        1 - rates.beta1,
        rates.beta2,
        1 - rates.beta2,
        rates.eps,
        rates.agc,
        rates.agc_min,
        0.0 if follower is None else follower.rate,
        COPY=copy is not None,
        FOLLOWER=follower is not None,
        FOLLOWER_COPY=follower is not None and follower.copy is not None,
        **shape,
    )
    return norm


if HAS_TRITON:
    import triton
    import triton.language as tl

    # Counted in units, starts and ends are known to be multiples of 64, and loads are as wide as they can be.
    _ALIGN = tl.constexpr(ALIGN)

    @triton.jit
    def _measure(gradient, parameter, chunks, partial, count, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
        """Program c: the sums of squares of chunk c of both, to partial[0, c] and partial[1, c]."""
        chunk = tl.program_id(0)
        start = tl.load(chunks + chunk * 4).to(tl.int64) * _ALIGN
        end = tl.load(chunks + chunk * 4 + 1).to(tl.int64) * _ALIGN
        by_gradient = tl.zeros([BLOCK], tl.float32)
        by_parameter = tl.zeros([BLOCK], tl.float32)
        for block in range(CHUNK // BLOCK):
            at = start + block * BLOCK + tl.arange(0, BLOCK)
            g = tl.load(gradient + at, mask=at < end, other=0.0).to(tl.float32)
            p = tl.load(parameter + at, mask=at < end, other=0.0)
            by_gradient += g * g
            by_parameter += p * p
        tl.store(partial + chunk, tl.sum(by_gradient, 0))
        tl.store(partial + count + chunk, tl.sum(by_parameter, 0))

    @triton.jit
    def _total(partial, first, last, BLOCK: tl.constexpr):
        """The square root of the sum of partial[first:last], in an order that depends on their number alone."""
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(first, last, BLOCK):
            at = start + tl.arange(0, BLOCK)
            total += tl.load(partial + at, mask=at < last, other=0.0)
        return tl.sqrt_rn(tl.sum(total, 0))

    @triton.jit
    def _update(
        gradient,
        parameter,
        mu,
        nu,
        copy,
        follower,
        follower_copy,
        chunks,
        partial,
        norm,
        rate,
        correction,
        count,
        follower_start,
        beta1,
        rest1,
        beta2,
        rest2,
        eps,
        agc,
        agc_min,
        follower_rate,
        COPY: tl.constexpr,
        FOLLOWER: tl.constexpr,
        FOLLOWER_COPY: tl.constexpr,
        CHUNK: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """Program c: chunk c; the first also adds up the norm of the whole gradient."""
        chunk = tl.program_id(0)
        if chunk == 0:
            tl.store(norm, _total(partial, 0, count, 1024))
        unit = tl.load(chunks + chunk * 4)
        start = unit.to(tl.int64) * _ALIGN
        end = tl.load(chunks + chunk * 4 + 1).to(tl.int64) * _ALIGN
        first, last = tl.load(chunks + chunk * 4 + 2), tl.load(chunks + chunk * 4 + 3)
        size = _total(partial + count, first, last, 1024)
        limit = tl.where(size <= agc_min, agc_min, size) * agc  # so written, NaN stays NaN
        excess = tl.div_rn(_total(partial, first, last, 1024), limit)
        factor = tl.div_rn(1.0, tl.where(excess <= 1.0, 1.0, excess))
        step, scale = tl.load(rate), tl.load(correction)
        for block in range(CHUNK // BLOCK):
            at = start + block * BLOCK + tl.arange(0, BLOCK)
            inside = at < end
            g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32) * factor
            # Division and root as IEEE has them: the fast ones flush denormals to zero.
            second = tl.load(nu + at, mask=inside, other=0.0) * beta2 + g * g * rest2
            root = tl.sqrt_rn(tl.div_rn(second, scale + tl.zeros_like(second))) + eps
            first_moment = tl.load(mu + at, mask=inside, other=0.0) * beta1 + tl.div_rn(g, root) * rest1
            p = tl.load(parameter + at, mask=inside, other=0.0) + first_moment * step
            tl.store(nu + at, second, mask=inside)
            tl.store(mu + at, first_moment, mask=inside)
            tl.store(parameter + at, p, mask=inside)
            if COPY:
                tl.store(copy + at, p.to(copy.dtype.element_ty), mask=inside)
            if FOLLOWER:  # noqa: SIM102 - this is known when compiling, what follows is not
                if unit >= follower_start:
                    there = at - follower_start * _ALIGN
                    old = tl.load(follower + there, mask=inside, other=0.0)
                    new = old + follower_rate * (p - old)
                    tl.store(follower + there, new, mask=inside)
                    if FOLLOWER_COPY:
                        tl.store(follower_copy + there, new.to(follower_copy.dtype.element_ty), mask=inside)
