"""From the four phases of a convolution's output to its activation: bias, (max-pool), RMS norm, SiLU, and gradients."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from genreward_fast.kernels.column_sums import column_sums
from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton, wide

Mode = Literal["keep", "shuffle", "pool", "pool_blocks"]
_LAYOUTS: dict[str, int] = {"keep": 0, "pool": 0, "shuffle": 1, "pool_blocks": 2}
TILE = 1024
MAX_PARTIALS = 1024
"""Most partial sums of the gradients of bias and scale; they are added up in a fixed order."""


def shuffle(x: Tensor, side: int = 2) -> Tensor:
    """(N, H, W, side² C) phases to (N, side H, side W, C) pixels."""
    n, height, width, _ = x.shape
    pieces = x.reshape(n, height, width, side, side, -1).permute(0, 1, 3, 2, 4, 5)
    return pieces.reshape(n, side * height, side * width, -1)


def unshuffle(x: Tensor) -> Tensor:
    """(N, 2 H, 2 W, C) pixels to (N, H, W, 4 C) phases."""
    n, height, width, channels = x.shape
    pieces = x.view(n, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
    return pieces.reshape(n, height // 2, width // 2, 4 * channels)


def phase_norm_silu_reference(
    x: Tensor, bias: Tensor, scale: Tensor, eps: float, mode: Mode, columns: int | None = None
) -> Tensor:
    """What `phase_norm_silu` computes, in plain PyTorch with float32 inside, with gradients."""
    phases = x.unflatten(-1, (4, -1)) + bias.to(x.dtype)
    pixels = phases.amax(-2) if mode.startswith("pool") else phases
    normed = functional.rms_norm(wide(pixels), scale.shape, scale, eps)
    result = functional.silu(normed).to(x.dtype)
    if mode == "pool_blocks":
        return unshuffle(result)
    if mode == "shuffle":
        result = shuffle(result.flatten(-2))
    elif mode == "keep":
        result = result.flatten(-2)
    return result if columns is None else functional.pad(result, (0, columns - result.shape[-1]))


def phase_norm_silu(
    x: Tensor, bias: Tensor, scale: Tensor, eps: float, mode: Mode, columns: int | None = None
) -> Tensor:
    """silu(norm(x + bias)) of a convolution's output in phases, norm(v) = v / sqrt(mean(v²) + eps) · scale over C.

    The sum with the bias is rounded to x's dtype, as that of a convolution is; a maximum compares those. All else is in
    float32 inside. The gradient of the maximum is split evenly among phases that tie.

    Args:
        x: (N, H, W, 4 C) of any floating dtype, with channels (phase, C); the phase of a pixel of the 2 H x 2 W image
            is 2 (row % 2) + column % 2.
        bias, scale: (C,) float32.
        eps: added to the mean square.
        mode: "keep" leaves the phases as they are, "shuffle" makes them pixels, "pool" takes their maximum (before the
            norm), and "pool_blocks" gives those maxima as 2 x 2 blocks, for which H and W must be even.
        columns: with "shuffle" or "pool", the channels of the result; those beyond C are 0.

    Returns:
        In x's dtype: (N, H, W, 4 C), (N, 2 H, 2 W, C), (N, H, W, C), or (N, H / 2, W / 2, 4 C).
    """
    if not runs_triton(x, bias, scale) or x.numel() == 0:
        return phase_norm_silu_reference(x, bias, scale, eps, mode, columns)
    return _PhaseNormSiLU.apply(x, bias, scale, eps, mode, columns or len(scale))


def phase_norm_silu_backward(
    grad: Tensor, x: Tensor, bias: Tensor, scale: Tensor, eps: float, mode: Mode, columns: int
) -> tuple[Tensor, Tensor]:
    """The gradients of `phase_norm_silu` by x, of its shape and dtype, and by bias and scale, (2, C) float32.

    Args:
        grad: like the result, contiguous.
        x, bias, scale, eps, mode, columns: as in `phase_norm_silu`; x contiguous.
    """
    by_x = torch.empty_like(x)
    shape, options, blocks = _launch(x, scale, mode, columns)
    per_program = -(-blocks // MAX_PARTIALS)
    programs = -(-blocks // per_program)
    partial = torch.empty((programs, 2, len(scale)), dtype=torch.float32, device=x.device)
    _backward[(programs,)](grad, x, bias, scale, by_x, partial, *shape, eps, per_program, **options)
    return by_x, column_sums(partial)


def _launch(x: Tensor, scale: Tensor, mode: Mode, columns: int) -> tuple[tuple[int, ...], dict[str, Any], int]:
    """The kernels' sizes and options, and how many blocks of normed rows there are."""
    size, pool = len(scale), mode.startswith("pool")
    if mode == "pool_blocks" and (x.shape[1] % 2 or x.shape[2] % 2):
        raise ValueError(f"an image of {x.shape[1]} x {x.shape[2]} pixels is no blocks of 2 x 2")
    width = padded(max(size, columns))
    block = max(1, min(128, TILE // width))
    rows = x.numel() // (4 * size if pool else size)
    options = {"LAYOUT": _LAYOUTS[mode], "POOL": pool, "ROWS": block, "SIZE": width, "num_warps": 4}
    return (rows, x.shape[2], size, columns), options, -(-rows // block)


class _PhaseNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, scale: Tensor, eps: float, mode: Mode, columns: int) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, bias, scale)
        ctx.options = eps, mode, columns
        n, height, width, _ = x.shape
        result = {
            "keep": (n, height, width, 4 * columns),
            "shuffle": (n, 2 * height, 2 * width, columns),
            "pool": (n, height, width, columns),
            "pool_blocks": (n, height // 2, width // 2, 4 * columns),
        }[mode]
        out = torch.empty(result, dtype=x.dtype, device=x.device)
        shape, options, blocks = _launch(x, scale, mode, columns)
        _forward[(blocks,)](x, bias, scale, out, *shape, eps, **options)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, scale = ctx.saved_tensors
        by_x, sums = phase_norm_silu_backward(grad.contiguous(), x, bias, scale, *ctx.options)
        return by_x, sums[0], sums[1], None, None, None


if HAS_TRITON:
    import triton
    import triton.language as tl

    from genreward_fast.kernels.normed_rows import normed_rows, normed_rows_backward

    @triton.jit
    def _target(row, width, LAYOUT: tl.constexpr):
        """Which row of the result, of C channels each, a normed row becomes. Images have an even height where it is
        halved, so that a line counted over all images says enough."""
        if LAYOUT == 0:
            return row
        elif LAYOUT == 1:  # line, column, phase to doubled line, doubled column
            phase, pixel = row % 4, row // 4
            line, column = pixel // width, pixel % width
            return (2 * line + phase // 2) * (2 * width) + 2 * column + phase % 2
        else:  # line, column to halved line, halved column, phase
            line, column = row // width, row % width
            return 4 * ((line // 2) * (width // 2) + column // 2) + 2 * (line % 2) + column % 2

    @triton.jit
    def _biased(x, at, shift, inside):
        """x plus bias, rounded as the convolution's output."""
        kind = x.dtype.element_ty
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + shift.to(kind).to(tl.float32)[None, :]
        return value.to(kind).to(tl.float32)

    @triton.jit
    def _larger(a, b):
        return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)

    @triton.jit
    def _forward(
        x,
        bias,
        scale,
        out,
        rows,
        width,
        size,
        columns,
        eps,
        LAYOUT: tl.constexpr,
        POOL: tl.constexpr,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, SIZE)
        real = column < size
        inside = (row < rows)[:, None] & real[None, :]
        shift = tl.load(bias + column, mask=real, other=0.0)
        factor = tl.load(scale + column, mask=real, other=0.0)
        if POOL:
            at = row[:, None] * (4 * size) + column[None, :]
            value = _larger(_biased(x, at, shift, inside), _biased(x, at + size, shift, inside))
            other = _larger(_biased(x, at + 2 * size, shift, inside), _biased(x, at + 3 * size, shift, inside))
            value = _larger(value, other)
        else:
            value = _biased(x, row[:, None] * size + column[None, :], shift, inside)
        y = normed_rows(value, factor, size, eps)
        target = _target(row, width, LAYOUT)[:, None] * columns + column[None, :]
        stored = (row < rows)[:, None] & (column < columns)[None, :]
        tl.store(out + target, y.to(out.dtype.element_ty), mask=stored)

    @triton.jit
    def _backward(
        grad,
        x,
        bias,
        scale,
        by_x,
        partial,
        rows,
        width,
        size,
        columns,
        eps,
        per_program,
        LAYOUT: tl.constexpr,
        POOL: tl.constexpr,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        """Program p: `per_program` blocks of ROWS rows; its shares of the gradients of bias and scale go to
        partial[p]."""
        column = tl.arange(0, SIZE)
        real = column < size
        shift = tl.load(bias + column, mask=real, other=0.0)
        factor = tl.load(scale + column, mask=real, other=0.0)
        kind = by_x.dtype.element_ty
        of_bias = tl.zeros([ROWS, SIZE], tl.float32)
        of_scale = tl.zeros([ROWS, SIZE], tl.float32)
        for block in range(per_program):
            row = (tl.program_id(0).to(tl.int64) * per_program + block) * ROWS + tl.arange(0, ROWS)
            inside = (row < rows)[:, None] & real[None, :]
            target = _target(row, width, LAYOUT)[:, None] * columns + column[None, :]
            by_y = tl.load(grad + target, mask=inside, other=0.0).to(tl.float32)
            if POOL:
                at = row[:, None] * (4 * size) + column[None, :]
                first, second = _biased(x, at, shift, inside), _biased(x, at + size, shift, inside)
                third, fourth = _biased(x, at + 2 * size, shift, inside), _biased(x, at + 3 * size, shift, inside)
                value = _larger(_larger(first, second), _larger(third, fourth))
            else:
                at = row[:, None] * size + column[None, :]
                value = _biased(x, at, shift, inside)
            by_value, by_factor = normed_rows_backward(by_y, value, factor, size, eps)
            of_scale += by_factor
            of_bias += by_value
            if not POOL:
                tl.store(by_x + at, by_value.to(kind), mask=inside)
            else:
                # Products, not choices: where the maximum is NaN no phase equals it, and the gradient must be NaN.
                one, two = (first == value).to(tl.float32), (second == value).to(tl.float32)
                three, four = (third == value).to(tl.float32), (fourth == value).to(tl.float32)
                share = by_value / (one + two + three + four)
                tl.store(by_x + at, (share * one).to(kind), mask=inside)
                tl.store(by_x + at + size, (share * two).to(kind), mask=inside)
                tl.store(by_x + at + 2 * size, (share * three).to(kind), mask=inside)
                tl.store(by_x + at + 3 * size, (share * four).to(kind), mask=inside)
        at = tl.program_id(0) * 2 * size + column
        tl.store(partial + at, tl.sum(of_bias, 0), mask=real)
        tl.store(partial + at + size, tl.sum(of_scale, 0), mask=real)
