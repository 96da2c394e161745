"""Dense layers of few units in one program: 16 rows go through all of them without leaving it.

A layer's weight is read in chunks of its inputs, so that shared memory suffices on every chip. Each program reads all
of it: that pays while a layer costs less than a launch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from genreward_fast.kernels.rssm_tiles import ROWS
from genreward_fast.kernels.triton_support import HAS_TRITON

MAX_BYTES = 1024
"""Most bytes of a row: a wider layer's weight takes a program longer to read than the launch that it saves, and its
chunks do not fit the shared memory of every chip."""
WARPS = 8
"""Warps of a program. There are fewer programs than multiprocessors, so a program's own warps must hide its waiting,
and with 256 threads 16 rows of 256 float32 sums are 16 registers of each."""


def fits(x: Tensor, units: int) -> bool:
    """Whether layers of so many units in the dtype of x can be computed so."""
    return units % ROWS == 0 and units * x.itemsize <= MAX_BYTES


def dense_layers(
    x: Tensor,
    scales: Tensor,
    layers: tuple[Tensor, Tensor],
    eps: float,
    norm: Callable[[Tensor, Tensor, float], Tensor],
) -> Tensor:
    """One after the other: norm and SiLU, then a linear layer; the norm after the last one is left out.

    Args:
        x: (N, U) before its norm.
        scales: (L + 1, U) float32; the last one is not read.
        layers: weights (L, U, U) and biases (L, U) in the dtype of x.
        eps: of the norms.
        norm: `rmsnorm_silu` or its reference.
    """
    for scale, weight, bias in zip(scales, *layers):
        x = F.linear(norm(x, scale, eps), weight, bias)
    return x


if HAS_TRITON:
    import triton
    import triton.language as tl

    from genreward_fast.kernels.normed_rows import normed_rows
    from genreward_fast.kernels.rssm_tiles import product

    @triton.jit
    def linear_rows(x, weight, target, wanted, UNITS: tl.constexpr, CHUNK: tl.constexpr, EXACT: tl.constexpr):
        """(ROWS, n) float32 sums of x · wᵀ; x (ROWS, SIZE), w the rows `target` (n,) of weight (outputs, UNITS), 0
        where they are not `wanted`."""
        pieces = tl.reshape(x, [x.shape[0], x.shape[1] // CHUNK, CHUNK])
        number = tl.arange(0, x.shape[1] // CHUNK)[None, :, None]
        along = weight + target[None, :] * UNITS + tl.arange(0, CHUNK)[:, None]
        acc = tl.zeros([x.shape[0], target.shape[0]], tl.float32)
        for k in range(UNITS // CHUNK):
            # Registers cannot be indexed: a chunk of x is what remains of a sum with all others 0.
            piece = tl.sum(tl.where(number == k, pieces, 0.0), 1).to(x.dtype)
            acc = product(piece, tl.load(along + k * CHUNK, mask=wanted[None, :], other=0.0), acc, EXACT)
        return acc

    @triton.jit
    def dense_rows(
        x, weight, bias, scale, column, real, eps, LAYERS: tl.constexpr, UNITS: tl.constexpr, CHUNK: tl.constexpr,
        EXACT: tl.constexpr,
    ):  # fmt: skip
        """x (ROWS, SIZE) through LAYERS layers, each linear, norm and SiLU, rounded to the dtype of x after the linear
        layer and after SiLU; weight (LAYERS, UNITS, UNITS), bias and scale (LAYERS, UNITS)."""
        for layer in range(LAYERS):
            # Asked for before the product, whose time hides the way from memory.
            offset = tl.load(bias + layer * UNITS + column, mask=real, other=0.0).to(tl.float32)
            factor = tl.load(scale + layer * UNITS + column, mask=real, other=0.0)
            acc = linear_rows(x, weight + layer * UNITS * UNITS, column, real, UNITS, CHUNK, EXACT)
            y = (acc + offset[None, :]).to(x.dtype).to(tl.float32)
            x = normed_rows(y, factor, UNITS, eps).to(x.dtype)
        return x
