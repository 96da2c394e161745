"""λ-returns: the recurrence over time as one scan, and what feeds it when the rows are imagined."""

from __future__ import annotations

import torch
from torch import Tensor

from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton, wide


def lambda_return_reference(
    reward: Tensor, terminal: Tensor, last: Tensor, bootstrap: Tensor, discount: float, lam: float
) -> Tensor:
    """What `lambda_return` computes, step by step in plain PyTorch."""
    alive, goes_on = (1 - flag.to(reward.dtype) for flag in (terminal, last))
    return _recurrence(reward, alive, goes_on, bootstrap, discount, lam)


def imagined_return_reference(
    reward: Tensor, logit: Tensor, bootstrap: Tensor, discount: float, lam: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What `imagined_return` computes, step by step in plain PyTorch."""
    con = wide(logit.detach()).sigmoid()
    returns = _recurrence(reward.t(), con.t(), torch.ones_like(con).t(), bootstrap.t(), discount, lam)
    return con, returns.t(), torch.cumprod(discount * con, 0) / discount


def _recurrence(
    reward: Tensor, alive: Tensor, goes_on: Tensor, bootstrap: Tensor, discount: float, lam: float
) -> Tensor:
    """(N, T) each to (N, T - 1)."""
    live, cont = alive[:, 1:] * discount, goes_on[:, 1:] * lam
    fixed = (reward[:, 1:] + (1 - cont) * live * bootstrap[:, 1:]).unbind(1)
    decay = (live * cont).unbind(1)
    value = bootstrap[:, -1]
    returns = []
    for t in reversed(range(len(fixed))):
        value = fixed[t] + decay[t] * value
        returns.append(value)
    return torch.stack(returns[::-1], 1)


def lambda_return(
    reward: Tensor, terminal: Tensor, last: Tensor, bootstrap: Tensor, discount: float, lam: float
) -> Tensor:
    """R_t = r_{t+1} + γ_{t+1} ((1 - λ_{t+1}) v_{t+1} + λ_{t+1} R_{t+1}), and R_{T-1} = v_{T-1}, for t = 0..T-2.

    γ_t = `discount` * (1 - terminal_t) and λ_t = `lam` * (1 - last_t) (Nature 2025, "Critic learning").

    Args:
        reward: (N, T) float32, r_t, of arriving at step t.
        terminal: (N, T) bool, or the float32 probability that the episode ends at t.
        last: (N, T) bool or float32; where 1, the return does not continue beyond t.
        bootstrap: (N, T) float32, v_t.

    Returns:
        (N, T - 1) float32, without gradients.
    """
    reward, bootstrap = reward.detach(), bootstrap.detach()
    rows, steps = reward.shape
    if not runs_triton(reward, terminal, last, bootstrap) or rows == 0 or steps < 2:
        return lambda_return_reference(reward, terminal, last, bootstrap, discount, lam)
    flags = (x.view(torch.uint8) if x.dtype == torch.bool else x for x in (terminal, last))
    inputs = [x.contiguous() for x in (reward, *flags, bootstrap)]
    out = torch.empty(rows, steps - 1, dtype=torch.float32, device=reward.device)
    block, width = _layout(steps)
    _replayed[(-(-rows // block),)](*inputs, out, rows, steps, discount, lam, ROWS=block, SIZE=width, num_warps=4)
    return out


def imagined_return(
    reward: Tensor, logit: Tensor, bootstrap: Tensor, discount: float, lam: float
) -> tuple[Tensor, Tensor, Tensor]:
    """λ-returns of imagined rows, where the chance of continuation takes the place of flags. Time comes first.

    Args:
        reward, bootstrap: (T, N) float32.
        logit: (T, N) of any floating dtype, whose sigmoid is the chance c_t that the episode goes on at step t.

    Returns:
        The chances (T, N); the returns (T - 1, N), those of `lambda_return` with terminal = 1 - c and no last step;
        each step's weight (T, N), c_0 · Π (discount · c_s) over s = 1..t. All float32, without gradients.
    """
    reward, logit, bootstrap = reward.detach(), logit.detach(), bootstrap.detach()
    steps, rows = reward.shape
    if not runs_triton(reward, logit, bootstrap) or rows == 0 or steps < 2:
        return imagined_return_reference(reward, logit, bootstrap, discount, lam)
    con, returns, weight = (
        torch.empty(n, rows, dtype=torch.float32, device=reward.device) for n in (steps, steps - 1, steps)
    )
    block, width = _layout(steps)
    _imagined[(-(-rows // block),)](
        reward.contiguous(),
        logit.contiguous(),
        bootstrap.contiguous(),
        con,
        returns,
        weight,
        rows,
        steps,
        discount,
        lam,
        ROWS=block,
        SIZE=width,
        num_warps=4,
    )
    return con, returns, weight


def _layout(steps: int) -> tuple[int, int]:
    """The rows that one program takes, and its steps."""
    width = padded(steps)
    return max(1, min(32, 1024 // width)), width


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _after(fixed, decay, more, rate):
        """R = more + rate · (what comes later), as a composition of such maps."""
        return more + rate * fixed, rate * decay

    @triton.jit
    def _times(a, b):
        return a * b

    @triton.jit
    def _replayed(
        reward, terminal, last, bootstrap, out, rows, steps, discount, lam, ROWS: tl.constexpr, SIZE: tl.constexpr
    ):
        """ROWS rows of (N, T), steps along the tile's second axis; place t holds what R_t adds, from step t + 1."""
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        step = tl.arange(0, SIZE)
        inside = (row < rows)[:, None] & (step < steps - 1)[None, :]
        at = row[:, None] * steps + step[None, :] + 1
        live = (1.0 - tl.load(terminal + at, mask=inside, other=0).to(tl.float32)) * discount
        cont = (1.0 - tl.load(last + at, mask=inside, other=0).to(tl.float32)) * lam
        value = tl.load(bootstrap + at, mask=inside, other=0.0)
        fixed = tl.load(reward + at, mask=inside, other=0.0) + (1.0 - cont) * live * value
        decay = live * cont
        # The recurrence starts from the last step's own value.
        fixed = tl.where((step == steps - 2)[None, :], fixed + decay * value, fixed)
        decay = tl.where((step < steps - 2)[None, :], decay, 0.0)
        fixed = tl.where(inside, fixed, 0.0)
        result, _ = tl.associative_scan((fixed, decay), 1, _after, reverse=True)
        tl.store(out + row[:, None] * (steps - 1) + step[None, :], result, mask=inside)

    @triton.jit
    def _imagined(
        reward,
        logit,
        bootstrap,
        con,
        returns,
        weight,
        rows,
        steps,
        discount,
        lam,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        """ROWS columns of (T, N), steps along the first axis of the tile."""
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        step = tl.arange(0, SIZE)
        inside = (step < steps)[:, None] & (row < rows)[None, :]
        at = step[:, None] * rows + row[None, :]
        chance = tl.sigmoid(tl.load(logit + at, mask=inside, other=0.0).to(tl.float32))
        tl.store(con + at, chance, mask=inside)
        product = tl.associative_scan(tl.where(inside, discount * chance, 1.0), 0, _times)
        tl.store(weight + at, product / discount, mask=inside)
        short = (step < steps - 1)[:, None] & (row < rows)[None, :]
        later = at + rows
        live = tl.sigmoid(tl.load(logit + later, mask=short, other=0.0).to(tl.float32)) * discount
        value = tl.load(bootstrap + later, mask=short, other=0.0)
        fixed = tl.load(reward + later, mask=short, other=0.0) + (1.0 - lam) * live * value
        decay = live * lam
        fixed = tl.where((step == steps - 2)[:, None], fixed + decay * value, fixed)
        decay = tl.where((step < steps - 2)[:, None], decay, 0.0)
        fixed = tl.where(short, fixed, 0.0)
        result, _ = tl.associative_scan((fixed, decay), 0, _after, reverse=True)
        tl.store(returns + at, result, mask=short)
