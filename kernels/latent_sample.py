"""Draws of categorical latents with a share of the uniform distribution, and the straight-through gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton, softmax, wide


def latent_sample_reference(logits: Tensor, uniform: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    """What `latent_sample` computes, in plain float32 PyTorch."""
    classes = logits.shape[-1]
    probs = softmax(wide(logits)) * (1 - unimix) + unimix / classes
    index = (probs[..., :-1].cumsum(-1) <= uniform.unsqueeze(-1)).sum(-1)
    return index, (index.unsqueeze(-1) == torch.arange(classes, device=index.device)).to(logits.dtype)


def latent_sample_backward_reference(by_draw: Tensor, by_logits: Tensor, logits: Tensor, unimix: float) -> Tensor:
    """What `latent_sample_backward` computes, in plain float32 PyTorch."""
    probs, grad = softmax(wide(logits)), wide(by_draw)
    through = (1 - unimix) * probs * (grad - (probs * grad).sum(-1, keepdim=True))
    return (through + wide(by_logits)).to(logits.dtype)


def latent_sample(logits: Tensor, uniform: Tensor, unimix: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draws by inversion from (1 - unimix) · softmax(logits) + unimix / classes.

    Args:
        logits: (..., classes), of any floating dtype.
        uniform: (...) float32 in [0, 1), one number for each draw.
        unimix: the uniform distribution's share.
        out: where to write the one-hots of logits (N, stoch, classes), whose first axis alone may be strided.

    Returns:
        (...) int64 class indices, and their one-hots (..., classes) in the dtype of the logits. Without gradients:
        `latent_sample_backward` has them.
    """
    if not runs_triton(logits, uniform):
        index, onehot = latent_sample_reference(logits, uniform, unimix)
        return index, onehot if out is None else out.copy_(onehot)
    logits, uniform = logits.contiguous(), uniform.contiguous()
    classes, rows = logits.shape[-1], uniform.numel()
    index = torch.empty(uniform.shape, dtype=torch.int64, device=logits.device)
    onehot = torch.empty_like(logits) if out is None else out
    # One stretch of all rows, or one for each of the first axis.
    length, stride = (rows, 0) if out is None else (out.shape[1], out.stride(0))
    block, width = _layout(classes)
    _forward[(-(-rows // block),)](
        logits, uniform, index, onehot, rows, classes, length, stride, unimix, ROWS=block, SIZE=width, num_warps=4
    )
    return index, onehot


def latent_sample_backward(
    by_draw: Tensor, more: Tensor, by_logits: Tensor, logits: Tensor, unimix: float, out: Tensor
) -> None:
    """The gradient by the logits, straight through the draw: as if it were the probabilities.

    Args:
        by_draw, more: (..., classes) contiguous, two summands of the gradient by the one-hot draw.
        by_logits: (..., classes) contiguous, the gradient that reaches the logits otherwise.
        logits, unimix: as in `latent_sample`, contiguous.
        out: (..., classes) contiguous, where to write.
    """
    if not runs_triton(by_draw, more, by_logits, logits):
        out.copy_(latent_sample_backward_reference(wide(by_draw) + wide(more), by_logits, logits, unimix))
        return
    classes = logits.shape[-1]
    rows = logits.numel() // classes
    block, width = _layout(classes)
    _backward[(-(-rows // block),)](
        by_draw, more, by_logits, logits, out, rows, classes, unimix, ROWS=block, SIZE=width, num_warps=4
    )


def _layout(classes: int) -> tuple[int, int]:
    """The rows and columns that one program takes."""
    width = padded(classes)
    return max(1, 512 // width), width


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _softmax(logits, at, inside):
        value = tl.load(logits + at, mask=inside, other=-float("inf")).to(tl.float32)
        value = tl.where(inside, value, -float("inf"))
        # Rows beyond the end are all -inf: 0 in the place of their maximum keeps NaN out.
        top = tl.max(value, 1)
        power = tl.exp(value - tl.where(top == -float("inf"), 0.0, top)[:, None])
        total = tl.sum(power, 1)
        return power / tl.where(total == 0.0, 1.0, total)[:, None]

    @triton.jit
    def drawn_classes(raw, level, unimix, CLASSES: tl.constexpr):
        """(ROWS, PER) classes; raw (ROWS, PER, SIZE) float32 logits, -inf beyond CLASSES; level (ROWS, PER)."""
        number = tl.arange(0, raw.shape[2])[None, None, :]
        top = tl.max(raw, 2)
        power = tl.exp(raw - tl.where(top == -float("inf"), 0.0, top)[:, :, None])
        sums = tl.sum(power, 2)
        probs = power / tl.where(sums == 0.0, 1.0, sums)[:, :, None] * (1.0 - unimix) + unimix / CLASSES
        passed = (tl.cumsum(probs, 2) <= level[:, :, None]) & (number < CLASSES - 1)
        return tl.sum(passed.to(tl.int32), 2)

    @triton.jit
    def _forward(
        logits, uniform, index, onehot, rows, classes, length, stride, unimix, ROWS: tl.constexpr, SIZE: tl.constexpr
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, SIZE)
        inside = (row < rows)[:, None] & (column < classes)[None, :]
        at = row[:, None] * classes + column[None, :]
        probs = _softmax(logits, at, inside) * (1.0 - unimix) + unimix / classes
        level = tl.load(uniform + row, mask=row < rows, other=0.0)
        passed = (tl.cumsum(probs, 1) <= level[:, None]) & (column < classes - 1)[None, :]
        drawn = tl.sum(passed.to(tl.int32), 1)
        tl.store(index + row, drawn.to(tl.int64), mask=row < rows)
        hit = tl.where(column[None, :] == drawn[:, None], 1.0, 0.0)
        at = (row // length * stride + row % length * classes)[:, None] + column[None, :]
        tl.store(onehot + at, hit.to(onehot.dtype.element_ty), mask=inside)

    @triton.jit
    def _backward(by_draw, more, by_logits, logits, out, rows, classes, unimix, ROWS: tl.constexpr, SIZE: tl.constexpr):
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, SIZE)
        inside = (row < rows)[:, None] & (column < classes)[None, :]
        at = row[:, None] * classes + column[None, :]
        probs = _softmax(logits, at, inside)
        grad = tl.load(by_draw + at, mask=inside, other=0.0).to(tl.float32)
        grad += tl.load(more + at, mask=inside, other=0.0).to(tl.float32)
        along = tl.sum(probs * grad, 1)
        result = (1.0 - unimix) * probs * (grad - along[:, None])
        result += tl.load(by_logits + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)
