"""The gates of a block GRU, from their pre-activations to the next state, and the gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton, wide

BLOCK = 512


def gru_gates_reference(gates: Tensor, bias: Tensor, state: Tensor, blocks: int) -> Tensor:
    """What `gru_gates` computes, in plain PyTorch with float32 inside."""
    reset, candidate, update = (wide(gates) + wide(bias)).view(len(state), blocks, 3, -1).unbind(2)
    # tanh x = 2 sigmoid(2 x) - 1, which PyTorch computes five times as fast on a CPU.
    candidate = 2 * torch.sigmoid(2 * torch.sigmoid(reset) * candidate) - 1
    before = wide(state).unflatten(1, (blocks, -1))
    return torch.lerp(before, candidate, torch.sigmoid(update - 1)).flatten(1).to(state.dtype)


def gru_gates_backward_reference(
    grad: Tensor, gates: Tensor, bias: Tensor, state: Tensor, blocks: int
) -> tuple[Tensor, Tensor]:
    """What `gru_gates_backward` computes, in plain PyTorch with float32 inside."""
    values = (wide(gates) + wide(bias)).view(len(state), blocks, 3, -1)
    reset, raw, update = (value.flatten(1) for value in values.unbind(2))
    grad, reset, update = wide(grad), reset.sigmoid(), (update - 1).sigmoid()
    candidate = torch.tanh(reset * raw)
    by_inner = grad * update * (1 - candidate.square())
    by_values = torch.stack(
        [
            piece.unflatten(1, (blocks, -1))
            for piece in (
                by_inner * raw * reset * (1 - reset),
                by_inner * reset,
                grad * (candidate - wide(state)) * update * (1 - update),
            )
        ],
        2,
    )
    return by_values.flatten(1).to(gates.dtype), (grad * (1 - update)).to(state.dtype)


def gru_gates(gates: Tensor, bias: Tensor, state: Tensor, blocks: int, out: Tensor | None = None) -> Tensor:
    """(1 - u) · state + u · tanh(sigmoid(reset) · candidate), u = sigmoid(update - 1), in float32 inside.

    Without gradients: `gru_gates_backward` has them.

    Args:
        gates: (N, 3 D) contiguous, of any floating dtype: for each of the blocks its D / blocks reset, then candidate,
            then update values.
        bias: (3 D,), added to the gates.
        state: (N, D); its rows may be strided.
        blocks: how many.
        out: where to write the result; its rows may be strided, too.

    Returns:
        (N, D) in the state's dtype.
    """
    if not runs_triton(gates, bias, state):
        result = gru_gates_reference(gates, bias, state, blocks)
        return result if out is None else out.copy_(result)
    out = torch.empty(state.shape, dtype=state.dtype, device=state.device) if out is None else out
    width = state.shape[1] // blocks
    columns = min(BLOCK, padded(width))
    _forward[(len(state), blocks, -(-width // columns))](
        gates,
        bias,
        state,
        state.stride(0),
        out,
        out.stride(0),
        width,
        COLUMNS=columns,
        num_warps=max(1, columns // 128),
    )
    return out


def gru_gates_backward(
    grad: Tensor, more: Tensor, gates: Tensor, bias: Tensor, state: Tensor, blocks: int, by_gates: Tensor
) -> Tensor:
    """The gradients of `gru_gates`, given those of its result as two summands.

    Args:
        grad, more: (N, D) contiguous.
        gates, bias, state, blocks: as in `gru_gates`.
        by_gates: (N, 3 D) contiguous, where to write the gradient by gates.

    Returns:
        (N, D): the gradient by state.
    """
    if not runs_triton(grad, more, gates, bias, state):
        value, by_state = gru_gates_backward_reference(wide(grad) + wide(more), gates, bias, state, blocks)
        by_gates.copy_(value)
        return by_state
    by_state = torch.empty_like(state)
    count, size = state.numel(), state.shape[1]
    _backward[(-(-count // BLOCK),)](
        grad,
        more,
        gates,
        bias,
        state,
        by_gates,
        by_state,
        count,
        size,
        size // blocks,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return by_state


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _activations(gates, bias, at, of_bias, width, inside):
        """Reset, candidate before and after tanh, and update."""
        reset = tl.load(gates + at, mask=inside, other=0.0).to(tl.float32)
        raw = tl.load(gates + at + width, mask=inside, other=0.0).to(tl.float32)
        update = tl.load(gates + at + 2 * width, mask=inside, other=0.0).to(tl.float32)
        reset = tl.sigmoid(reset + tl.load(bias + of_bias, mask=inside, other=0.0).to(tl.float32))
        raw += tl.load(bias + of_bias + width, mask=inside, other=0.0).to(tl.float32)
        update += tl.load(bias + of_bias + 2 * width, mask=inside, other=0.0).to(tl.float32)
        candidate = 2.0 * tl.sigmoid(2.0 * reset * raw) - 1.0  # tanh
        return reset, raw, candidate, tl.sigmoid(update - 1.0)

    @triton.jit
    def _places(index, size, width):
        """Where the reset value of each state lies in a row of gates, and in all of them."""
        column = index % size
        of_bias = column // width * 3 * width + column % width
        return (index // size).to(tl.int64) * 3 * size + of_bias, of_bias

    @triton.jit
    def _forward(gates, bias, state, state_stride, out, out_stride, width, COLUMNS: tl.constexpr):
        """Program (row, block, columns)."""
        column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
        inside = column < width
        block, row = tl.program_id(1), tl.program_id(0).to(tl.int64)
        of_bias = block * 3 * width + column
        at = row * tl.num_programs(1) * 3 * width + of_bias
        _, _, candidate, update = _activations(gates, bias, at, of_bias, width, inside)
        of_state = block * width + column
        old = tl.load(state + row * state_stride + of_state, mask=inside, other=0.0).to(tl.float32)
        new = old + update * (candidate - old)
        tl.store(out + row * out_stride + of_state, new.to(out.dtype.element_ty), mask=inside)

    @triton.jit
    def _backward(grad, more, gates, bias, state, by_gates, by_state, count, size, width, BLOCK: tl.constexpr):
        index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = index < count
        at, of_bias = _places(index, size, width)
        reset, raw, candidate, update = _activations(gates, bias, at, of_bias, width, inside)
        old = tl.load(state + index, mask=inside, other=0.0).to(tl.float32)
        by_new = tl.load(grad + index, mask=inside, other=0.0).to(tl.float32)
        by_new += tl.load(more + index, mask=inside, other=0.0).to(tl.float32)
        by_inner = by_new * update * (1.0 - candidate * candidate)
        kind = by_gates.dtype.element_ty
        tl.store(by_gates + at, (by_inner * raw * reset * (1.0 - reset)).to(kind), mask=inside)
        tl.store(by_gates + at + width, (by_inner * reset).to(kind), mask=inside)
        by_update = by_new * (candidate - old) * update * (1.0 - update)
        tl.store(by_gates + at + 2 * width, by_update.to(kind), mask=inside)
        tl.store(by_state + index, (by_new * (1.0 - update)).to(by_state.dtype.element_ty), mask=inside)
