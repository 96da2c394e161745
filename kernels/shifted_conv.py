"""A 3 x 3 x 3 convolution over padded channels-last maps, as a sum of shifted matrix products.

With its padding in memory, the map is a matrix with a row for every place. What a tap of the kernel contributes to a
run of places is the product of the tap's weights with the same run of rows, moved by a constant: no address depends on
a place, and tiles of it are copied as in any product of matrices. Places in the padding are computed for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from genreward_fast.kernels.moments import FLOAT8_MOST, Moments, fewer, to_float8
from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton

SHARED = 200_000
"""Bytes of shared memory from which on a GPU takes the larger tiles."""


def float8_weight(weight: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """A convolution's weights in float8, and what its outputs are then multiplied with.

    Args:
        weight: (N, C, 3, 3, 3) of any floating dtype.
        factor: what the maps that it will be given have been multiplied with.

    Returns:
        (N, 27 C) float8 (e4m3), every output's weights scaled to fill the format's range, and (N,) float32.
    """
    rows = weight_rows(weight).float()
    most = rows.abs().amax(1).clamp_min(1e-30)
    return to_float8(rows * (FLOAT8_MOST / most).unsqueeze(1)), most / (FLOAT8_MOST * factor)


def weight_rows(weight: Tensor) -> Tensor:
    """(N, C, 3, 3, 3) to (N, 27 C): an output's weights in the order time, height, width, channel."""
    return weight.permute(0, 2, 3, 4, 1).flatten(1)


def shifted_conv_reference(
    x: Tensor,
    rows: Tensor,
    bias: Tensor,
    *,
    factor: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype,
) -> Tensor:
    """What `shifted_conv` computes, in plain PyTorch with float32 inside; without the moments."""
    weight = rows.float().unflatten(1, (3, 3, 3, -1)).permute(0, 4, 1, 2, 3)
    y = functional.conv3d(x.float().permute(0, 4, 1, 2, 3), weight).permute(0, 2, 3, 4, 1)
    y = (y if factor is None else y * factor) + bias.float()
    return (y if residual is None else y + residual.float()).to(dtype)


def shifted_conv(
    x: Tensor,
    rows: Tensor,
    bias: Tensor,
    chunks: Sequence[int],
    *,
    factor: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype,
) -> tuple[Tensor, Moments | None]:
    """conv(x) * factor + bias + residual, and the outputs' moments by chunk of frames.

    Sums are in float32 (those of float8's products as exactly as the GPU's tensor cores do it), rounded once. Moments
    are of the rounded values. Results depend neither on the batch size nor on the GPU's number of multiprocessors, and
    repeat exactly. No gradients.

    Args:
        x: (B, T + 2, H + 2, W + 2, C), padded; contiguous, C a multiple of 32. bfloat16, float16, float32 or float8.
        rows: (N, 27 C) of x's dtype, see `weight_rows` and `float8_weight`; contiguous.
        bias: (N,) of any floating dtype.
        chunks: lengths of the pieces of T frames; from the second on they are equal.
        factor: (N,) float32.
        residual: (B, T, H, W, N) of any floating dtype; contiguous.
        dtype: of the output.

    Returns:
        (B, T, H, W, N) in `dtype`, and the moments of its chunks, a clip's after one another; None off Triton.

    Raises:
        ValueError: these chunks do not make up T frames, or the shapes do not fit.
    """
    clips, frames, height, width = x.shape[0], *(size - 2 for size in x.shape[1:4])
    outputs, channels = rows.shape[0], x.shape[-1]
    chunks = list(chunks)
    if sum(chunks) != frames or min(chunks) < 1 or len(set(chunks[1:])) > 1:
        raise ValueError(f"chunks of {chunks} frames: must be equal but for the first, and sum up to {frames}")
    if rows.shape[1] != 27 * channels or min(height, width) < 1:
        raise ValueError(f"weights {tuple(rows.shape)} do not fit a padded map {tuple(x.shape)}")
    given = [tensor for tensor in (rows, bias, factor, residual) if tensor is not None]
    if not runs_triton(x, *given) or x.numel() == 0 or channels % 32:
        return shifted_conv_reference(x, rows, bias, factor=factor, residual=residual, dtype=dtype), None
    out = torch.empty((clips, frames, height, width, outputs), dtype=dtype, device=x.device)
    moments = shifted_products(x.flatten(0, 3), rows, bias, out, chunks, width + 2, 3, factor=factor, residual=residual)
    return out, moments


def shifted_products(
    matrix: Tensor,
    rows: Tensor,
    bias: Tensor,
    out: Tensor,
    chunks: list[int],
    wide: int,
    across: int,
    *,
    factor: Tensor | None = None,
    residual: Tensor | None = None,
) -> Moments:
    """The products themselves, on Triton.

    Args:
        matrix: (places, K), a row for each place of padded maps; rows may overlap.
        rows: (N, 9 · across · K).
        out: (B, T, H, W, N), which is written.
        wide: places in a line.
        across: neighbouring places of a line that are products of their own; one if a row of the matrix holds all.
    """
    clips, frames, height, width, outputs = out.shape
    plane = (height + 2) * wide
    tile = _tile(matrix.dtype, padded(outputs), matrix.shape[1], matrix.device)
    columns = -(-outputs // tile["SIZE"])
    tiles = -(-max(chunks) * plane // tile["PLACES"])
    moments = Moments.empty(clips * len(chunks), tiles, outputs, out.device)
    _forward[(clips * len(chunks) * tiles * columns,)](
        _descriptor(matrix, [tile["PLACES"], tile["STEP"]]),
        _descriptor(rows, [tile["SIZE"], tile["STEP"]]),
        bias if factor is None else factor,
        bias,
        out if residual is None else residual,
        out,
        moments.values,
        moments.counts,
        frames,
        height,
        width,
        wide,
        plane,
        outputs,
        len(chunks),
        chunks[0],
        chunks[-1],
        tiles,
        FACTOR=factor is not None,
        RESIDUAL=residual is not None,
        WIDTH=matrix.shape[1],
        ACROSS=across,
        **tile,
    )
    return fewer(moments)


def _tile(dtype: torch.dtype, outputs: int, width: int, device: torch.device) -> dict[str, int]:
    """Places and outputs of a program's tile, numbers of a step of its sums, and how many steps are loaded ahead."""
    step = min(width, 128 // dtype.itemsize)
    size = max(min(outputs, 128), 16)
    if dtype.itemsize == 4:
        return {"PLACES": 32, "SIZE": min(size, 32), "STEP": min(step, 16), "AHEAD": 2, "num_warps": 4}
    if width < 64:  # so few sums that writing is the work
        return {"PLACES": 64, "SIZE": size, "STEP": step, "AHEAD": 4, "num_warps": 4}
    if outputs >= 256 and _shared_memory(device) >= SHARED:
        return {"PLACES": 128, "SIZE": 256, "STEP": step, "AHEAD": 4, "num_warps": 8}
    return {"PLACES": 128, "SIZE": size, "STEP": step, "AHEAD": 3, "num_warps": 4}


def _shared_memory(device: torch.device) -> int:
    """Bytes that a program may have; those of the smallest GPU off CUDA."""
    if device.type != "cuda":
        return 99 * 1024
    properties: Any = torch.cuda.get_device_properties(device)  # PyTorch's types leave some out
    return properties.shared_memory_per_block_optin


if HAS_TRITON:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor

    def _descriptor(matrix: Tensor, block: list[int]) -> TensorDescriptor:
        return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), block)

    @triton.jit
    def _forward(
        matrix,
        rows,
        factor,
        bias,
        residual,
        out,
        values,
        counts,
        frames,
        height,
        width,
        wide,
        plane,
        outputs,
        count,
        first,
        rest,
        tiles,
        FACTOR: tl.constexpr,
        RESIDUAL: tl.constexpr,
        WIDTH: tl.constexpr,
        ACROSS: tl.constexpr,
        PLACES: tl.constexpr,
        SIZE: tl.constexpr,
        STEP: tl.constexpr,
        AHEAD: tl.constexpr,
    ):
        """Programs go by chunk, tile of PLACES places, and column of SIZE outputs."""
        columns = tl.cdiv(outputs, SIZE)
        piece, begin_output = tl.program_id(0) // columns, tl.program_id(0) % columns * SIZE
        which, tile = piece // tiles, piece % tiles
        chunk, clip = which % count, which // count
        begin = tl.where(chunk > 0, first + (chunk - 1) * rest, 0)
        start = tile * PLACES
        base = (clip * (frames + 2) + begin) * plane + start
        total = tl.zeros([PLACES, SIZE], tl.float32)
        STEPS: tl.constexpr = WIDTH // STEP
        for step in tl.range(0, 9 * ACROSS * STEPS, num_stages=AHEAD):
            tap = step // STEPS
            moved = tap // (3 * ACROSS) * plane + tap // ACROSS % 3 * wide + tap % ACROSS
            x = matrix.load([base + moved, step % STEPS * STEP])
            weight = rows.load([begin_output, step * STEP])
            total = tl.dot(x, weight.T, total, input_precision="ieee")
        column = begin_output + tl.arange(0, SIZE)
        real = column < outputs
        place = start + tl.arange(0, PLACES)
        time, line, at = place // plane, place % plane // wide, place % wide
        inner = (place < tl.where(chunk > 0, rest, first) * plane) & (line < height) & (at < width)
        inside = inner[:, None] & real[None, :]
        where = (((time * height + line) * width + at) * outputs)[:, None] + column[None, :]
        skipped = (clip * frames + begin).to(tl.int64) * height * width * outputs
        if FACTOR:
            total *= tl.load(factor + column, mask=real, other=0.0)[None, :]
        total += tl.load(bias + column, mask=real, other=0.0).to(tl.float32)[None, :]
        if RESIDUAL:
            total += tl.load(residual + skipped + where, mask=inside, other=0.0).to(tl.float32)
        rounded = total.to(out.dtype.element_ty)
        tl.store(out + skipped + where, rounded, mask=inside)
        counted = inner.to(tl.float32)
        found = tl.sum(counted)
        value = rounded.to(tl.float32)
        mean = tl.sum(value * counted[:, None], 0) / tl.maximum(found, 1.0)
        distance = (value - mean[None, :]) * counted[:, None]
        tl.store(values + piece * 2 * outputs + column, mean, mask=real)
        tl.store(values + (piece * 2 + 1) * outputs + column, tl.sum(distance * distance, 0), mask=real)
        tl.store(counts + piece, found)
