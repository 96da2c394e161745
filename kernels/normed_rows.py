"""The arithmetic of an RMS norm and SiLU inside a kernel, on rows that lie in one program; and its gradient."""

from __future__ import annotations

from genreward_fast.kernels.triton_support import HAS_TRITON

if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def normed_rows(value, scale, size, eps):
        """silu(norm · scale) of float32 rows (ROWS, SIZE), which are 0 beyond `size`, as is the result."""
        rate = 1.0 / tl.sqrt(tl.sum(value * value, 1) / size + eps)
        y = value * rate[:, None] * scale[None, :]
        return y * tl.sigmoid(y)

    @triton.jit
    def normed_rows_backward(by_y, value, scale, size, eps):
        """Given the gradient by `normed_rows`, that by value, and what the rows add to that by scale."""
        rate = 1.0 / tl.sqrt(tl.sum(value * value, 1) / size + eps)
        unit = value * rate[:, None]
        normed = unit * scale[None, :]
        gate = tl.sigmoid(normed)
        by_normed = by_y * gate * (1.0 + normed * (1.0 - gate))
        by_unit = by_normed * scale[None, :]
        along = tl.sum(by_unit * unit, 1) / size
        return rate[:, None] * (by_unit - unit * along[:, None]), by_normed * unit
