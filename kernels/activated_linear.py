"""A linear layer and its activation in one launch, as in a transformer's feed-forward layer.

Only activated outputs are written: a gated layer (SwiGLU, Shazeer, arXiv 2002.05202) writes half of what its product
gives, and nothing is read again to be activated.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from genreward_fast.kernels.triton_support import HAS_TRITON, runs_triton, wide


def activated_linear_reference(x: Tensor, weight: Tensor, bias: Tensor, *, gated: bool) -> Tensor:
    """What `activated_linear` computes, in plain PyTorch with float32 inside."""
    y = functional.linear(wide(x), wide(weight), wide(bias))
    if not gated:
        return functional.gelu(y).to(x.dtype)
    gate, up = y.chunk(2, -1)
    return (functional.silu(gate) * up).to(x.dtype)


def activated_linear(x: Tensor, weight: Tensor, bias: Tensor, *, gated: bool) -> Tensor:
    """silu(gate) · up or gelu (exact) of x's product with the weights, in float32 inside, rounded once. No gradients.

    Args:
        x: (N, K) of any floating dtype, made for bfloat16 and float16; copied unless contiguous. Rows that are no
            multiple of 16 bytes go through the reference.
        weight: (2 · F, K) of x's dtype if gated, the gate's rows first; else (F, K); contiguous.
        bias: of the outputs, of any floating dtype.
        gated: which of the two.

    Returns:
        (N, F) in x's dtype.

    Raises:
        ValueError: the shapes or dtypes do not fit.
    """
    outputs, inputs = weight.shape
    if x.ndim != 2 or x.shape[1] != inputs or bias.shape != (outputs,) or (gated and outputs % 2):
        raise ValueError(f"weights {tuple(weight.shape)}, bias {tuple(bias.shape)} do not fit {tuple(x.shape)}")
    if weight.dtype != x.dtype:
        raise ValueError(f"weights are {weight.dtype}, rows {x.dtype}: must be the same")
    whole = inputs * x.element_size() % 16 == 0
    if not runs_triton(x, weight, bias) or not whole or x.numel() == 0 or weight.numel() == 0:
        return activated_linear_reference(x, weight, bias, gated=gated)
    size = outputs // 2 if gated else outputs
    tile = _tile(x.dtype, gated)
    out = torch.empty((len(x), size), dtype=x.dtype, device=x.device)
    columns = -(-size // tile["SIZE"])
    _forward[(-(-len(x) // tile["ROWS"]) * columns,)](
        _descriptor(x.contiguous(), [tile["ROWS"], tile["STEP"]]),
        _descriptor(weight, [tile["SIZE"], tile["STEP"]]),
        bias,
        out,
        len(x),
        size,
        columns,
        WIDTH=inputs,
        GATED=gated,
        **tile,
    )
    return out


def _tile(dtype: torch.dtype, gated: bool) -> dict[str, int]:
    """Rows and results of a program's tile, numbers of a step of its sums, and how many steps are loaded ahead.

    96 KB in 2 bytes a number: one program on the smallest GPU, two on an H100, so that one writes while one computes.
    """
    if dtype.itemsize == 4:
        return {"ROWS": 32, "SIZE": 32, "STEP": 16, "AHEAD": 2, "num_warps": 4}
    return {"ROWS": 128, "SIZE": 64 if gated else 128, "STEP": 64, "AHEAD": 3, "num_warps": 4}


if HAS_TRITON:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor

    def _descriptor(matrix: Tensor, block: list[int]) -> TensorDescriptor:
        return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), block)

    @triton.jit
    def _forward(
        x,
        weight,
        bias,
        out,
        count,
        size,
        columns,
        WIDTH: tl.constexpr,
        GATED: tl.constexpr,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
        STEP: tl.constexpr,
        AHEAD: tl.constexpr,
    ):
        """ROWS x SIZE results a program; programs that follow each other share their rows."""
        first_row = tl.program_id(0) // columns * ROWS
        first = tl.program_id(0) % columns * SIZE
        result = tl.zeros((ROWS, SIZE), tl.float32)
        up = tl.zeros((ROWS, SIZE), tl.float32)
        for k in tl.range(0, WIDTH, STEP, num_stages=AHEAD):
            part = x.load([first_row, k])
            result = tl.dot(part, weight.load([first, k]).T, result, input_precision="ieee")
            if GATED:
                up = tl.dot(part, weight.load([size + first, k]).T, up, input_precision="ieee")
        column = first + tl.arange(0, SIZE)
        known = column < size
        result += tl.load(bias + column, mask=known, other=0.0).to(tl.float32)[None, :]
        if GATED:
            up += tl.load(bias + size + column, mask=known, other=0.0).to(tl.float32)[None, :]
            result = result * tl.sigmoid(result) * up
        else:
            result = 0.5 * result * (1 + tl.erf(result * 0.7071067811865476))
        row = first_row + tl.arange(0, ROWS)
        at = row.to(tl.int64)[:, None] * size + column[None, :]
        tl.store(out + at, result.to(out.dtype.element_ty), mask=(row < count)[:, None] & known[None, :])
