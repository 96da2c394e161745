"""The activation of a gated feed-forward layer (SwiGLU, Shazeer, arXiv 2002.05202): silu(gate) · up."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from genreward_fast.kernels.triton_support import HAS_TRITON, runs_triton, wide

TILE = 1024


def gated_silu_reference(x: Tensor) -> Tensor:
    """What `gated_silu` computes, in plain PyTorch with float32 inside."""
    gate, up = wide(x).chunk(2, -1)
    return (functional.silu(gate) * up).to(x.dtype)


def gated_silu(x: Tensor) -> Tensor:
    """silu(gate) · up, in float32 inside, rounded once. No gradients.

    Args:
        x: (..., 2 · F) of any floating dtype, the gate first; copied unless contiguous.

    Returns:
        (..., F) in x's dtype.
    """
    if not runs_triton(x) or x.numel() == 0:
        return gated_silu_reference(x)
    x = x.contiguous()
    size = x.shape[-1] // 2
    out = torch.empty((*x.shape[:-1], size), dtype=x.dtype, device=x.device)
    _activate[(-(-out.numel() // TILE),)](x, out, out.numel(), size, TILE=TILE, num_warps=4)
    return out


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _activate(x, out, count, size, TILE: tl.constexpr):
        """TILE results a program."""
        place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
        inside = place < count
        at = x + place // size * (2 * size) + place % size
        gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(at + size, mask=inside, other=0.0).to(tl.float32)
        result = gate * tl.sigmoid(gate) * up
        tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)
