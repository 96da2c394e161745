"""The bounded normal policy: its parameters, and the REINFORCE loss with an entropy bonus, from raw outputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genreward_fast.kernels.triton_support import HAS_TRITON, padded, rows_of, runs_triton, wide

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


def bounded_normal_reference(raw: Tensor, min_std: float, max_std: float) -> tuple[Tensor, Tensor]:
    """What `bounded_normal` computes, in plain float32 PyTorch."""
    mean, stddev = wide(raw).chunk(2, -1)
    return torch.tanh(mean), (max_std - min_std) * torch.sigmoid(stddev + 2.0) + min_std


def policy_loss_reference(
    raw: Tensor,
    action: Tensor,
    returns: Tensor,
    value: Tensor,
    weight: Tensor,
    scale: Tensor,
    min_std: float,
    max_std: float,
    entropy_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `policy_loss` computes, in plain float32 PyTorch."""
    mean, stddev = bounded_normal_reference(raw[: len(action)], min_std, max_std)
    returns, value, weight = (x.detach() for x in (returns, value, weight))
    score = (action.detach() - mean) / stddev
    log_prob = -(0.5 * score.square() + stddev.log() + HALF_LOG_TAU).sum(-1)
    entropy = (stddev.log() + HALF_LOG_TAU + 0.5).sum(-1)
    advantage = (returns - value[: len(action)]) / scale
    loss = -weight[: len(action)] * (log_prob * advantage + entropy_scale * entropy)
    return loss, entropy.detach(), stddev.detach().mean(-1), advantage


def bounded_normal(raw: Tensor, min_std: float, max_std: float) -> tuple[Tensor, Tensor]:
    """Mean tanh(m) and deviation (max_std - min_std) · sigmoid(s + 2) + min_std of raw outputs [m, s].

    Args:
        raw: (..., 2 · A) of any floating dtype.

    Returns:
        (..., A) float32 each. Where gradients are asked for, in plain PyTorch.
    """
    differentiable = raw.requires_grad and torch.is_grad_enabled()
    if differentiable or not runs_triton(raw) or raw.numel() == 0:
        return bounded_normal_reference(raw, min_std, max_std)
    raw = raw.detach().contiguous()
    size = raw.shape[-1] // 2
    mean, stddev = (torch.empty(*raw.shape[:-1], size, dtype=torch.float32, device=raw.device) for _ in range(2))
    grid = (-(-mean.numel() // 512),)
    _normal[grid](raw, mean, stddev, mean.numel(), size, min_std, max_std - min_std, BLOCK=512, num_warps=4)
    return mean, stddev


def policy_loss(
    raw: Tensor,
    action: Tensor,
    returns: Tensor,
    value: Tensor,
    weight: Tensor,
    scale: Tensor,
    min_std: float,
    max_std: float,
    entropy_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-weight · (log π(action) · advantage + entropy_scale · entropy), advantage = (returns - value) / scale.

    Time comes first: H steps of N rows. `raw`, `value` and `weight` may have more steps than H, which play no part.
    Everything but `raw` is constant.

    Args:
        raw: (H.., N, 2 · A), what `bounded_normal` reads, of any floating dtype.
        action: (H, N, A) float32, of any strides, what the policy drew.
        returns: (H, N) float32. value, weight: (H.., N) float32.
        scale: 0-d float32.

    Returns:
        The loss, with a gradient by `raw`; the entropy in nats; the mean deviation; the advantage: (H, N) float32.
    """
    constants = (action, returns, value, weight, scale)
    if not runs_triton(raw, *constants) or returns.numel() == 0:
        return policy_loss_reference(raw, *constants, min_std, max_std, entropy_scale)
    return _PolicyLoss.apply(raw, *constants, min_std, max_std, entropy_scale)


def _layout(size: int) -> dict[str, int]:
    """The rows and actions that one program takes."""
    width = padded(size)
    return {"ROWS": max(1, 256 // width), "SIZE": width}


class _PolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        raw: Tensor,
        action: Tensor,
        returns: Tensor,
        value: Tensor,
        weight: Tensor,
        scale: Tensor,
        min_std: float,
        max_std: float,
        entropy_scale: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        raw, returns, value, weight = (x.contiguous() for x in (raw, returns, value, weight))
        loss, entropy, stddev, advantage = (
            torch.empty(returns.shape, dtype=torch.float32, device=raw.device) for _ in range(4)
        )
        ctx.save_for_backward(raw, action, weight, advantage)
        ctx.options = min_std, max_std - min_std, entropy_scale
        size, tile = action.shape[-1], _layout(action.shape[-1])
        _forward[(-(-returns.numel() // tile["ROWS"]),)](
            raw,
            action,
            *action.stride(),
            returns,
            value,
            weight,
            scale,
            loss,
            entropy,
            stddev,
            advantage,
            returns.numel(),
            returns.shape[1],
            size,
            *ctx.options,
            num_warps=2,
            **tile,
        )
        ctx.mark_non_differentiable(entropy, stddev, advantage)
        ctx.set_materialize_grads(False)
        return loss, entropy, stddev, advantage

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        raw, action, weight, advantage = ctx.saved_tensors
        by_raw = torch.empty_like(raw)
        grad, step = rows_of(grad, raw)
        size, tile = action.shape[-1], _layout(action.shape[-1])
        rows = raw.numel() // (2 * size)
        _backward[(-(-rows // tile["ROWS"]),)](
            grad,
            step,
            raw,
            action,
            *action.stride(),
            weight,
            advantage,
            by_raw,
            advantage.numel(),
            rows,
            advantage.shape[1],
            size,
            *ctx.options,
            num_warps=2,
            **tile,
        )
        return (by_raw, *[None] * 8)


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _tanh(x):
        # By a series where the quotient would lose digits.
        small = tl.exp(-2.0 * tl.abs(x))
        quotient = (1.0 - small) / (1.0 + small)
        square = x * x
        series = x * (1.0 - square * (1.0 / 3 - square * (2.0 / 15 - square * (17.0 / 315))))
        return tl.where(tl.abs(x) < 0.1, series, tl.where(x < 0.0, -quotient, quotient))

    @triton.jit
    def _normal(raw, mean, stddev, count, size, min_std, spread, BLOCK: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        place = at // size * (2 * size) + at % size
        inside = at < count
        centre = tl.load(raw + place, mask=inside, other=0.0).to(tl.float32)
        width = tl.load(raw + place + size, mask=inside, other=0.0).to(tl.float32)
        tl.store(mean + at, _tanh(centre), mask=inside)
        tl.store(stddev + at, spread * tl.sigmoid(width + 2.0) + min_std, mask=inside)

    @triton.jit
    def _forward(
        raw,
        action,
        by_step,
        by_row,
        by_action,
        returns,
        value,
        weight,
        scale,
        loss,
        entropy,
        deviation,
        advantage,
        count,
        rows,
        size,
        min_std,
        spread,
        entropy_scale,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, SIZE)
        used = row < count
        inside = used[:, None] & (column < size)[None, :]
        at = row[:, None] * (2 * size) + column[None, :]
        mean = _tanh(tl.load(raw + at, mask=inside, other=0.0).to(tl.float32))
        stddev = spread * tl.sigmoid(tl.load(raw + at + size, mask=inside, other=0.0).to(tl.float32) + 2.0) + min_std
        place = (row // rows * by_step + row % rows * by_row)[:, None] + column[None, :] * by_action
        score = (tl.load(action + place, mask=inside, other=0.0) - mean) / stddev
        spent = tl.log(stddev) + 0.9189385332046727
        nats = tl.sum(tl.where(inside, spent + 0.5, 0.0), 1)
        log_prob = -tl.sum(tl.where(inside, 0.5 * score * score + spent, 0.0), 1)
        gain = tl.load(returns + row, mask=used, other=0.0) - tl.load(value + row, mask=used, other=0.0)
        gain = gain / tl.load(scale)
        result = -tl.load(weight + row, mask=used, other=0.0) * (log_prob * gain + entropy_scale * nats)
        tl.store(loss + row, result, mask=used)
        tl.store(entropy + row, nats, mask=used)
        tl.store(deviation + row, tl.sum(tl.where(inside, stddev, 0.0), 1) / size, mask=used)
        tl.store(advantage + row, gain, mask=used)

    @triton.jit
    def _backward(
        grad,
        step,
        raw,
        action,
        by_step,
        by_row,
        by_action,
        weight,
        advantage,
        by_raw,
        count,
        total,
        rows,
        size,
        min_std,
        spread,
        entropy_scale,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        """Rows from `count` on, up to `total`, play no part."""
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, SIZE)
        used = row < count
        inside = used[:, None] & (column < size)[None, :]
        at = row[:, None] * (2 * size) + column[None, :]
        mean = _tanh(tl.load(raw + at, mask=inside, other=0.0).to(tl.float32))
        gate = tl.sigmoid(tl.load(raw + at + size, mask=inside, other=0.0).to(tl.float32) + 2.0)
        stddev = spread * gate + min_std
        place = (row // rows * by_step + row % rows * by_row)[:, None] + column[None, :] * by_action
        score = (tl.load(action + place, mask=inside, other=0.0) - mean) / stddev
        factor = -tl.load(grad + row * step, mask=used, other=0.0) * tl.load(weight + row, mask=used, other=0.0)
        gain = (factor * tl.load(advantage + row, mask=used, other=0.0))[:, None]
        by_mean = tl.where(inside, gain * score / stddev * (1.0 - mean * mean), 0.0)
        by_stddev = (gain * (score * score - 1.0) + (factor * entropy_scale)[:, None]) / stddev
        by_stddev = tl.where(inside, by_stddev * spread * gate * (1.0 - gate), 0.0)
        written = (row < total)[:, None] & (column < size)[None, :]
        tl.store(by_raw + at, by_mean.to(by_raw.dtype.element_ty), mask=written)
        tl.store(by_raw + at + size, by_stddev.to(by_raw.dtype.element_ty), mask=written)
