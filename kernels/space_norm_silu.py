"""The decoder's first map: two linear layers' outputs added in their places, RMS norm, SiLU; and the gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from genreward_fast.kernels.column_sums import column_sums
from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton, wide

TILE = 1024
MAX_PARTIALS = 32
"""Most partial sums of the gradients of biases and scale, for each pixel; they are added up in a fixed order."""


def space_norm_silu_reference(
    pieces: Tensor, pieces_bias: Tensor, flat: Tensor, flat_bias: Tensor, scale: Tensor, eps: float
) -> Tensor:
    """What `space_norm_silu` computes, in plain PyTorch with float32 norms inside, with gradients."""
    blocks, n, width = pieces.shape
    pixels = blocks * width // len(scale)
    first = pieces + pieces_bias.view(blocks, 1, width).to(pieces.dtype)
    first = first.view(blocks, n, pixels, width // pixels).permute(1, 2, 0, 3).flatten(2)
    x = first + (flat + flat_bias.to(flat.dtype)).view(first.shape)
    return functional.silu(functional.rms_norm(wide(x), scale.shape, scale, eps)).to(x.dtype)


def space_norm_silu(
    pieces: Tensor, pieces_bias: Tensor, flat: Tensor, flat_bias: Tensor, scale: Tensor, eps: float
) -> Tensor:
    """silu(norm(pieces + flat)) of P pixels of C channels, norm(v) = v / sqrt(mean(v²) + eps) · scale, with gradients.

    Sums are rounded to the inputs' dtype one by one, as in linear layers; all else is in float32 inside.

    Args:
        pieces: (G, N, P · C / G), a block's product at a time; block g holds the g-th C / G channels of every pixel.
        pieces_bias: (P · C,) float32 in the order block, pixel, channel.
        flat: (N, P · C), in the order pixel, channel.
        flat_bias: (P · C,) float32.
        scale: (C,) float32.
        eps: added to the mean square.

    Returns:
        (N, P, C) in the inputs' dtype.
    """
    if not runs_triton(pieces, pieces_bias, flat, flat_bias, scale) or flat.numel() == 0:
        return space_norm_silu_reference(pieces, pieces_bias, flat, flat_bias, scale, eps)
    return _SpaceNormSiLU.apply(pieces, pieces_bias, flat, flat_bias, scale, eps)


def _launch(pieces: Tensor, scale: Tensor) -> tuple[tuple[int, ...], dict[str, int], int]:
    """The kernels' sizes and options, and how many blocks of rows there are."""
    blocks, n, width = pieces.shape
    size = len(scale)
    tile = padded(size)
    rows = max(1, min(128, TILE // tile))
    return (
        (n, blocks * width // size, size // blocks, size),
        {"ROWS": rows, "SIZE": tile, "num_warps": 4},
        -(-n // rows),
    )


class _SpaceNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pieces: Tensor, pieces_bias: Tensor, flat: Tensor, flat_bias: Tensor, scale: Tensor, eps: float
    ) -> Tensor:
        inputs = pieces.contiguous(), pieces_bias, flat.contiguous(), flat_bias, scale
        ctx.save_for_backward(*inputs)
        ctx.eps = eps
        shape, options, blocks = _launch(pieces, scale)
        out = torch.empty((shape[0], shape[1], shape[3]), dtype=flat.dtype, device=flat.device)
        _forward[(blocks, shape[1])](*inputs, out, *shape, eps, **options)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pieces, _, flat, _, scale = inputs = ctx.saved_tensors
        shape, options, blocks = _launch(pieces, scale)
        per_program = -(-blocks // MAX_PARTIALS)
        programs = -(-blocks // per_program)
        by_pieces, by_flat = torch.empty_like(pieces), torch.empty_like(flat)
        partial = torch.empty((programs, 2, *grad.shape[1:]), dtype=torch.float32, device=grad.device)
        _backward[(programs, shape[1])](
            grad.contiguous(), *inputs, by_pieces, by_flat, partial, *shape, ctx.eps, per_program, **options
        )
        by_bias, by_scale = column_sums(partial).unbind()
        by_pieces_bias = by_bias.view(shape[1], len(pieces), -1).transpose(0, 1).flatten()
        return by_pieces, by_pieces_bias, by_flat, by_bias.flatten(), column_sums(by_scale), None


if HAS_TRITON:
    import triton
    import triton.language as tl

    from genreward_fast.kernels.normed_rows import normed_rows, normed_rows_backward

    @triton.jit
    def _rounded(x, at, bias, of_bias, inside, real):
        """x plus bias, rounded."""
        kind = x.dtype.element_ty
        shift = tl.load(bias + of_bias, mask=real, other=0.0).to(kind).to(tl.float32)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + shift[None, :]
        return value.to(kind).to(tl.float32)

    @triton.jit
    def _sums(pieces, pieces_bias, flat, flat_bias, row, column, n, pixels, width, size):
        """Where the values of one pixel lie in `pieces` and `flat`, which are inside, and their sum."""
        pixel, real = tl.program_id(1), column < size
        inside = (row < n)[:, None] & real[None, :]
        block, channel = column // width, column % width
        at_pieces = row[:, None] * (pixels * width) + (block.to(tl.int64) * n * (pixels * width))[None, :]
        at_pieces += (pixel * width + channel)[None, :]
        at_flat = (row * pixels + pixel)[:, None] * size + column[None, :]
        of_bias = (block * pixels + pixel) * width + channel
        value = _rounded(pieces, at_pieces, pieces_bias, of_bias, inside, real)
        value += _rounded(flat, at_flat, flat_bias, pixel * size + column, inside, real)
        return at_pieces, at_flat, inside, value.to(flat.dtype.element_ty).to(tl.float32)

    @triton.jit
    def _forward(
        pieces,
        pieces_bias,
        flat,
        flat_bias,
        scale,
        out,
        n,
        pixels,
        width,
        size,
        eps,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        """Program (block, pixel): that pixel of ROWS maps."""
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, SIZE)
        _, at, inside, value = _sums(pieces, pieces_bias, flat, flat_bias, row, column, n, pixels, width, size)
        # What lies beyond the channels is 0 and adds nothing.
        y = normed_rows(value, tl.load(scale + column, mask=column < size, other=0.0), size, eps)
        tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)

    @triton.jit
    def _backward(
        grad,
        pieces,
        pieces_bias,
        flat,
        flat_bias,
        scale,
        by_pieces,
        by_flat,
        partial,
        n,
        pixels,
        width,
        size,
        eps,
        per_program,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        """Program (p, pixel): `per_program` blocks of ROWS maps; its shares of the gradients of biases and scale go to
        partial[p, :, pixel]."""
        column = tl.arange(0, SIZE)
        factor = tl.load(scale + column, mask=column < size, other=0.0)
        of_bias, of_scale = tl.zeros([ROWS, SIZE], tl.float32), tl.zeros([ROWS, SIZE], tl.float32)
        for block in range(per_program):
            row = (tl.program_id(0).to(tl.int64) * per_program + block) * ROWS + tl.arange(0, ROWS)
            at_pieces, at, inside, value = _sums(
                pieces, pieces_bias, flat, flat_bias, row, column, n, pixels, width, size
            )
            by_y = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
            by_value, by_factor = normed_rows_backward(by_y, value, factor, size, eps)
            of_scale += by_factor
            of_bias += by_value
            tl.store(by_flat + at, by_value.to(by_flat.dtype.element_ty), mask=inside)
            tl.store(by_pieces + at_pieces, by_value.to(by_pieces.dtype.element_ty), mask=inside)
        at = (tl.program_id(0) * 2 * pixels + tl.program_id(1)) * size + column
        tl.store(partial + at, tl.sum(of_bias, 0), mask=column < size)
        tl.store(partial + at + pixels * size, tl.sum(of_scale, 0), mask=column < size)
