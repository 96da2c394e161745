"""The weights of a 5 x 5 convolution as those of a 3 x 3 one between blocks of pixels, and the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genreward_fast.kernels.triton_support import HAS_TRITON, runs_triton

BLOCK = 512


def phase_weights_reference(
    weight: Tensor, dtype: torch.dtype, side: int, scale: int, rows: int, columns: int
) -> Tensor:
    """What `phase_weights` computes, in plain PyTorch, with gradients."""
    # Tap k of output p of a block reads input s of block a - 1, counted from its own, where this holds for a t.
    p, a, s, t, k = torch.meshgrid(
        *(torch.arange(n, device=weight.device) for n in (side, 3, side // scale, scale, 5)), indexing="ij"
    )
    place = (k + p - 2 == side * (a - 1) + scale * s + t).sum(3).to(weight.dtype)
    full = torch.einsum("oikl,pask,qbtl->pqostiab", weight, place, place)
    full = full.reshape(side**2 * len(weight), -1, 3, 3)
    padding = [0, 0, 0, 0, 0, columns - full.shape[1], 0, rows - full.shape[0]]
    return torch.nn.functional.pad(full, padding).to(dtype).contiguous(memory_format=torch.channels_last)


def phase_weights(weight: Tensor, dtype: torch.dtype, side: int, scale: int, rows: int, columns: int) -> Tensor:
    """The 3 x 3 weights with which a convolution gives what a 5 x 5 one (stride 1, same size) gives, in blocks.

    The input is an image that is first scaled up by nearest neighbours, `scale` times (1 leaves it). In channels it
    holds blocks of (side / scale) x (side / scale) pixels: (row in the block, column in the block, input). The output
    holds blocks of side x side pixels in the same way. With padding 1 the results at the borders agree too. Taps that
    read the same pixel are added in float32; where no tap reads, there are zeros.

    Args:
        weight: (outputs, inputs, 5, 5) float32.
        dtype: of the result.
        side: of a block of outputs; at least 2, a multiple of `scale`.
        scale: 1 or 2.
        rows: channels of the output, at least side² · outputs; those beyond are 0.
        columns: channels of the input, at least (side / scale)² · inputs; those beyond count for nothing.

    Returns:
        (rows, columns, 3, 3) in channels-last memory.
    """
    if not runs_triton(weight):
        return phase_weights_reference(weight, dtype, side, scale, rows, columns)
    return _PhaseWeights.apply(weight, dtype, side, scale, rows, columns)


def phase_weights_backward(grad: Tensor, outputs: int, inputs: int, side: int, scale: int) -> Tensor:
    """The gradient by weight, (outputs, inputs, 5, 5) float32, given that of the result of `phase_weights`."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    by_weight = torch.empty((outputs, inputs, 5, 5), dtype=torch.float32, device=grad.device)
    count = by_weight.numel()
    _backward[(-(-count // BLOCK),)](
        grad, by_weight, count, outputs, inputs, grad.shape[1], SIDE=side, SCALE=scale, BLOCK=BLOCK, num_warps=4
    )
    return by_weight


class _PhaseWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, dtype: torch.dtype, side: int, scale: int, rows: int, columns: int) -> Tensor:
        outputs, inputs = weight.shape[:2]
        ctx.options = outputs, inputs, side, scale
        weight = weight.contiguous()
        out = torch.empty((rows, 3, 3, columns), dtype=dtype, device=weight.device)
        count = out.numel()
        _forward[(-(-count // BLOCK),)](
            weight, out, count, outputs, inputs, columns, SIDE=side, SCALE=scale, BLOCK=BLOCK, num_warps=4
        )
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return phase_weights_backward(grad, *ctx.options), None, None, None, None, None


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _forward(
        weight, out, count, outputs, inputs, columns, SIDE: tl.constexpr, SCALE: tl.constexpr, BLOCK: tl.constexpr
    ):
        """Elements of `out` in their order in memory: row, a, b, column."""
        index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        pixels: tl.constexpr = SIDE // SCALE
        column, rest = index % columns, index // columns
        a, b, row = rest // 3 % 3, rest % 3, rest // 9
        output, o = row // outputs, row % outputs
        source, i = column // inputs, column % inputs
        inside = (index < count) & (output < SIDE * SIDE) & (source < pixels * pixels)
        first_k = SIDE * (a - 1) + 2 + SCALE * (source // pixels) - output // SIDE
        first_l = SIDE * (b - 1) + 2 + SCALE * (source % pixels) - output % SIDE
        value = tl.zeros([BLOCK], tl.float32)
        for t in tl.static_range(SCALE * SCALE):
            k, l = first_k + t // SCALE, first_l + t % SCALE
            tap = inside & (k >= 0) & (k < 5) & (l >= 0) & (l < 5)
            value += tl.load(weight + ((o * inputs + i) * 5 + k) * 5 + l, mask=tap, other=0.0)
        tl.store(out + index, value.to(out.dtype.element_ty), mask=index < count)

    @triton.jit
    def _backward(
        grad, by_weight, count, outputs, inputs, columns, SIDE: tl.constexpr, SCALE: tl.constexpr, BLOCK: tl.constexpr
    ):
        """Elements of the weight in the order output, tap, input, in which the gradient's lie side by side."""
        index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = index < count
        pixels: tl.constexpr = SIDE // SCALE
        i, rest = index % inputs, index // inputs
        k, l, o = rest // 5 % 5, rest % 5, rest // 25
        total = tl.zeros([BLOCK], tl.float32)
        for output in tl.static_range(SIDE * SIDE):
            line, place = k + output // SIDE + SIDE - 2, l + output % SIDE + SIDE - 2
            source = line % SIDE // SCALE * pixels + place % SIDE // SCALE
            row = (output * outputs + o) * 9 + line // SIDE * 3 + place // SIDE
            at = row * columns + source * inputs + i
            total += tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(by_weight + ((o * inputs + i) * 5 + k) * 5 + l, total, mask=inside)
