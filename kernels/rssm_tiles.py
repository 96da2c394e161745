"""What the kernels of the recurrent model share: how rows and columns are cut into programs, and products of tiles.

A program computes 16 rows, the least that the tensor cores take, by few columns, so that many programs share the
weights' way through the cache. Its inner dimension is cut into groups, one for each warp, that are added up at the end.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from genreward_fast.kernels.triton_support import HAS_TRITON, INTERPRETED

ROWS = 16
"""Rows of a program."""
COLUMNS = 16
"""Columns of a program, where nothing else decides."""
TILE_BYTES = 32 * 1024
"""Most bytes of one operand of one product, so that both operands fit the shared memory of every chip."""
NORM_EPS = 1e-4


@functools.cache
def launch_options(device: torch.device) -> dict[str, bool]:
    """`PDL`, and what Triton's launcher must be told of it."""
    if INTERPRETED or device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}


def chunk(length: int, columns: int, dtype: torch.dtype) -> int:
    """The largest power of two that divides `length` and keeps a (chunk, columns) operand within `TILE_BYTES`."""
    most = TILE_BYTES // (max(columns, ROWS) * dtype.itemsize)
    return min(length & -length, 1 << (most.bit_length() - 1))


def groups(chunk_size: int, most: int = 4, least: int = 16) -> int:
    """Into how many parts a program splits a chunk, one for each of its warps: at most `most`, each at least `least`
    long. Which is best is measured: more warps wait less for memory, and more for each other."""
    return max(1, min(most, chunk_size // least))


def exact(x: Tensor) -> bool:
    """Whether products are of float32 operands, which must not be rounded to tf32."""
    return x.dtype == torch.float32


if HAS_TRITON:
    import triton
    import triton.language as tl
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

    @triton.jit
    def product(x, w, acc, EXACT: tl.constexpr):
        """acc + x · w for each group; (GROUPS, ROWS, k), (GROUPS, k, n), (GROUPS, ROWS, n)."""
        if EXACT:
            return tl.dot(x, w, acc, input_precision="ieee")
        return tl.dot(x, w, acc)

    @triton.jit
    def places(start, CHUNK: tl.constexpr, GROUPS: tl.constexpr):
        """(GROUPS, CHUNK / GROUPS) positions from `start`."""
        part: tl.constexpr = CHUNK // GROUPS
        return start + tl.arange(0, GROUPS)[:, None] * part + tl.arange(0, part)[None, :]

    @triton.jit
    def load_rows(x, stride, row, inside, at):
        """Columns `at` (GROUPS, k) of rows (ROWS,): (GROUPS, ROWS, k)."""
        offset = row.to(tl.int64)[None, :, None] * stride + at[:, None, :]
        return tl.load(x + offset, mask=inside[None, :, None], other=0.0)

    @triton.jit
    def more_squares(
        first, x, stride, row, inside, LENGTH: tl.constexpr, CHUNK: tl.constexpr, GROUPS: tl.constexpr
    ):  # fmt: skip
        """(ROWS,) sums of squares of rows, of which the first chunk is loaded already."""
        value = first.to(tl.float32)
        total = tl.sum(tl.sum(value * value, 2), 0)
        for start in tl.static_range(CHUNK, LENGTH, CHUNK):
            value = load_rows(x, stride, row, inside, places(start, CHUNK, GROUPS)).to(tl.float32)
            total += tl.sum(tl.sum(value * value, 2), 0)
        return total

    @triton.jit
    def normed(value, rate, scale):
        """silu(value · rate · scale) in the dtype of value; rate (ROWS,), scale (GROUPS, k)."""
        y = value.to(tl.float32) * rate[None, :, None] * scale[:, None, :]
        return (y * tl.sigmoid(y)).to(value.dtype)

    @triton.jit
    def wait(PDL: tl.constexpr):
        """Until all earlier kernels have written what they write; lets the next one start."""
        if PDL:
            gdc_wait()
            gdc_launch_dependents()
