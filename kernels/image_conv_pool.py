"""The encoder's first level in one kernel, from uint8 images to the second level's input, and its gradients.

Its convolution reads three channels and writes more than all later ones; here its output never reaches memory. For the
gradients it is enough to know the maximum of each 2 x 2 pixels and which of the four reached it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from genreward_fast.kernels.column_sums import column_sums
from genreward_fast.kernels.image_blocks import padded_image
from genreward_fast.kernels.phase_norm_silu import unshuffle
from genreward_fast.kernels.triton_support import HAS_TRITON, runs_triton

SIZES = (16, 32)
"""Channels of the output with which the kernels fit a program's registers and shared memory."""
PATCH = 128
"""What four neighbouring pixels read, 6 x 6 pixels of 3 colours, filled up to a power of two."""
ROWS = 128
GRADIENT_ROWS = 64
MAX_PARTIALS = 264
"""Most partial sums of the gradients; they are added up in a fixed order."""


def image_conv_pool_reference(
    image: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """What `image_conv_pool` computes, in plain PyTorch with float32 norms inside, with gradients."""
    x = (image.reshape(-1, *image.shape[-3:]).to(dtype) / 255 - 0.5).permute(0, 3, 1, 2)
    y = functional.conv2d(x, weight.to(dtype), padding=2) + bias.to(dtype)[:, None, None]
    pooled = unshuffle(y.permute(0, 2, 3, 1)).unflatten(-1, (4, -1)).amax(-2)
    normed = functional.rms_norm(pooled.float(), scale.shape, scale, eps)
    return unshuffle(functional.silu(normed).to(dtype))


def image_conv_pool(
    image: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """silu(norm(max_pool(conv(image / 255 - 0.5) + bias))), norm(v) = v / sqrt(mean(v²) + eps) · scale over channels.

    Convolution, sum with the bias and result are rounded to `dtype`; the maximum is over 2 x 2 pixels, and its gradient
    is split evenly among those that tie. All else is in float32 inside.

    Args:
        image: (..., H, W, 3) uint8, H and W multiples of 4.
        weight: (C, 3, 5, 5) float32, for stride 1 and an output of the image's size; C must be one of `SIZES` on CUDA.
        bias, scale: (C,) float32.
        eps: added to the mean square.
        dtype: what to compute in; the tensor cores' if it is to be fast.

    Returns:
        (N, H / 4, W / 4, 4 C) in `dtype`: blocks of 2 x 2 pixels, channels (row in the block, column in the block, C).
    """
    if not runs_triton(image, weight, bias, scale) or image.numel() == 0:
        return image_conv_pool_reference(image, weight, bias, scale, eps, dtype)
    return _ImageConvPool.apply(image, weight, bias, scale, eps, dtype)


class _ImageConvPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        size, device = len(weight), image.device
        x = padded_image(image, dtype, 2)
        n, height, width = len(x), image.shape[-3] // 2, image.shape[-2] // 2
        rows = n * height * width
        taps = torch.empty((4, PATCH, size), dtype=dtype, device=device)
        _taps[(4,)](weight.contiguous(), taps, SIZE=size, PATCH=PATCH, num_warps=4)
        out = torch.empty((n, height // 2, width // 2, 4 * size), dtype=dtype, device=device)
        keep = any(ctx.needs_input_grad)
        highest = torch.empty((rows if keep else 0, size), dtype=dtype, device=device)
        ties = torch.empty((rows if keep else 0, size), dtype=torch.uint8, device=device)
        _forward[(-(-rows // ROWS),)](
            x,
            taps,
            bias,
            scale,
            out,
            highest,
            ties,
            rows,
            height,
            width,
            eps,
            KEEP=keep,
            SIZE=size,
            PATCH=PATCH,
            ROWS=ROWS,
            num_warps=4,
        )
        ctx.save_for_backward(x, scale, highest, ties)
        ctx.options = rows, height, width, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, highest, ties = ctx.saved_tensors
        rows, size = len(highest), len(scale)
        blocks = -(-rows // GRADIENT_ROWS)
        per_program = -(-blocks // MAX_PARTIALS)
        programs = -(-blocks // per_program)
        partial = torch.empty((programs, 4 * PATCH + 2, size), dtype=torch.float32, device=x.device)
        _backward[(programs,)](
            grad.contiguous(),
            x,
            scale,
            highest,
            ties,
            partial,
            *ctx.options,
            per_program,
            SIZE=size,
            PATCH=PATCH,
            ROWS=GRADIENT_ROWS,
            num_warps=8,
        )
        total = column_sums(partial)
        # Tap (k, l) of phase (p, q) reads pixel (p + k, q + l) of the patch: a view along these diagonals, summed over
        # phases.
        phase, line = PATCH * size, 18 * size
        taps = total.as_strided((2, 2, 5, 5, 3, size), (2 * phase + line, phase + 3 * size, line, 3 * size, size, 1))
        by_weight = taps.sum((0, 1)).permute(3, 2, 0, 1).contiguous()
        by_bias, by_scale = total[4 * PATCH :].unbind()
        return None, by_weight, by_bias, by_scale, None, None


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _taps(weight, taps, SIZE: tl.constexpr, PATCH: tl.constexpr):
        """Program `phase`: what the output at that phase takes from each place of the patch."""
        phase = tl.program_id(0)
        place, column = tl.arange(0, PATCH)[:, None], tl.arange(0, SIZE)[None, :]
        k, l, colour = place // 18 - phase // 2, place % 18 // 3 - phase % 2, place % 3
        inside = (place < 108) & (k >= 0) & (k < 5) & (l >= 0) & (l < 5)
        value = tl.load(weight + column * 75 + colour * 25 + k * 5 + l, mask=inside, other=0.0)
        tl.store(taps + (phase * PATCH + place) * SIZE + column, value.to(taps.dtype.element_ty))

    @triton.jit
    def _patches(image, row, rows, height, width, PATCH: tl.constexpr):
        """(ROWS, PATCH) of the padded image: what each block of 2 x 2 pixels reads; from place 108 on anything."""
        pitch = (2 * width + 4) * 3
        n, inner = row // (height * width), row % (height * width)
        start = (n * (2 * height + 4) + 2 * (inner // width)) * pitch + 6 * (inner % width)
        place = tl.arange(0, PATCH)
        offset = tl.where(place < 108, place // 18 * pitch + place % 18, place - 108)
        # Pairs lie side by side: 18, the pitch and every start are even.
        start, offset = tl.multiple_of(start, 2), tl.max_contiguous(tl.multiple_of(offset, 2), 2)
        return tl.load(image + (start[:, None] + offset[None, :]), mask=(row < rows)[:, None], other=0.0)

    @triton.jit
    def _target(row, width):
        """Which row of the result a pooled pixel becomes: line, column to halved line, halved column, phase."""
        line, column = row // width, row % width
        return 4 * ((line // 2) * (width // 2) + column // 2) + 2 * (line % 2) + column % 2

    @triton.jit
    def _conv(patch, taps, shift, phase: tl.constexpr, SIZE: tl.constexpr, PATCH: tl.constexpr):
        """(ROWS, SIZE): convolution plus bias of one phase, rounded twice as by two operations."""
        kind = taps.dtype.element_ty
        at = (phase * PATCH + tl.arange(0, PATCH))[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
        value = tl.dot(patch, tl.load(taps + at), input_precision="ieee").to(kind).to(tl.float32)
        return (value + shift[None, :]).to(kind).to(tl.float32)

    @triton.jit
    def _larger(a, b):
        return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)

    @triton.jit
    def _forward(
        image,
        taps,
        bias,
        scale,
        out,
        highest,
        ties,
        rows,
        height,
        width,
        eps,
        KEEP: tl.constexpr,
        SIZE: tl.constexpr,
        PATCH: tl.constexpr,
        ROWS: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, SIZE)
        kind = out.dtype.element_ty
        shift = tl.load(bias + column).to(kind).to(tl.float32)
        patch = _patches(image, row, rows, height, width, PATCH)
        first, second = _conv(patch, taps, shift, 0, SIZE, PATCH), _conv(patch, taps, shift, 1, SIZE, PATCH)
        third, fourth = _conv(patch, taps, shift, 2, SIZE, PATCH), _conv(patch, taps, shift, 3, SIZE, PATCH)
        value = _larger(_larger(first, second), _larger(third, fourth))
        inside = (row < rows)[:, None] & (column < SIZE)[None, :]
        if KEEP:
            at = row[:, None] * SIZE + column[None, :]
            tie = (first == value).to(tl.int32) + 2 * (second == value).to(tl.int32)
            tie += 4 * (third == value).to(tl.int32) + 8 * (fourth == value).to(tl.int32)
            tl.store(highest + at, value.to(kind), mask=inside)
            tl.store(ties + at, tie.to(tl.uint8), mask=inside)
        rate = 1.0 / tl.sqrt(tl.sum(value * value, 1) / SIZE + eps)
        normed = value * rate[:, None] * tl.load(scale + column)[None, :]
        at = _target(row, width)[:, None] * SIZE + column[None, :]
        tl.store(out + at, (normed * tl.sigmoid(normed)).to(kind), mask=inside)

    @triton.jit
    def _backward(
        grad,
        image,
        scale,
        highest,
        ties,
        partial,
        rows,
        height,
        width,
        eps,
        per_program,
        SIZE: tl.constexpr,
        PATCH: tl.constexpr,
        ROWS: tl.constexpr,
    ):
        """Program p: `per_program` blocks of ROWS rows; its shares of the gradients go to partial[p]: for each phase by
        itself that of its taps, transposed, then those of bias and scale."""
        column = tl.arange(0, SIZE)
        kind = image.dtype.element_ty
        factor = tl.load(scale + column)
        of_bias, of_scale = tl.zeros([ROWS, SIZE], tl.float32), tl.zeros([ROWS, SIZE], tl.float32)
        first, second = tl.zeros([PATCH, SIZE], tl.float32), tl.zeros([PATCH, SIZE], tl.float32)
        third, fourth = tl.zeros([PATCH, SIZE], tl.float32), tl.zeros([PATCH, SIZE], tl.float32)
        for block in range(per_program):
            row = (tl.program_id(0).to(tl.int64) * per_program + block) * ROWS + tl.arange(0, ROWS)
            inside = (row < rows)[:, None] & (column < SIZE)[None, :]
            patch = tl.trans(_patches(image, row, rows, height, width, PATCH))
            at = row[:, None] * SIZE + column[None, :]
            value = tl.load(highest + at, mask=inside, other=0.0).to(tl.float32)
            tie = tl.load(ties + at, mask=inside, other=1).to(tl.int32)
            at = _target(row, width)[:, None] * SIZE + column[None, :]
            by_y = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
            rate = 1.0 / tl.sqrt(tl.sum(value * value, 1) / SIZE + eps)
            unit = value * rate[:, None]
            normed = unit * factor[None, :]
            gate = tl.sigmoid(normed)
            by_normed = by_y * gate * (1.0 + normed * (1.0 - gate))
            by_unit = by_normed * factor[None, :]
            by_value = rate[:, None] * (by_unit - unit * (tl.sum(by_unit * unit, 1) / SIZE)[:, None])
            of_scale += by_normed * unit
            of_bias += by_value
            one, two = (tie & 1).to(tl.float32), (tie // 2 & 1).to(tl.float32)
            three, four = (tie // 4 & 1).to(tl.float32), (tie // 8).to(tl.float32)
            share = by_value / (one + two + three + four)
            first = tl.dot(patch, (share * one).to(kind), first, input_precision="ieee")
            second = tl.dot(patch, (share * two).to(kind), second, input_precision="ieee")
            third = tl.dot(patch, (share * three).to(kind), third, input_precision="ieee")
            fourth = tl.dot(patch, (share * four).to(kind), fourth, input_precision="ieee")
        start = tl.program_id(0) * (4 * PATCH + 2)
        at = (start + tl.arange(0, PATCH))[:, None] * SIZE + column[None, :]
        tl.store(partial + at, first)
        tl.store(partial + at + PATCH * SIZE, second)
        tl.store(partial + at + 2 * PATCH * SIZE, third)
        tl.store(partial + at + 3 * PATCH * SIZE, fourth)
        at = (start + 4 * PATCH) * SIZE + column
        tl.store(partial + at, tl.sum(of_bias, 0))
        tl.store(partial + at + SIZE, tl.sum(of_scale, 0))
