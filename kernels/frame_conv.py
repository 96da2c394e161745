"""The first convolution of a causal video encoder, straight from bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from genreward_fast.kernels.moments import Moments
from genreward_fast.kernels.shifted_conv import shifted_products
from genreward_fast.kernels.triton_support import HAS_TRITON, runs_triton

PLACE = 8
"""Numbers that a pixel's colours are padded to: 16 bytes, the least distance of a tensor map's rows."""
ROW = 32
"""Numbers of a row: a pixel and the three to the right of it, the last of which counts for nothing."""
BLOCK = 512


def frame_conv_reference(frames: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What `frame_conv` computes, in plain PyTorch: float32 inside, but pixels are rounded to the weights' dtype."""
    pixels = scaled(frames).to(weight.dtype).float().permute(0, 4, 1, 2, 3)
    before = torch.cat([pixels[:, :, :1], pixels[:, :, :1], pixels], 2)
    y = functional.conv3d(before, weight.float(), bias.float(), padding=(0, 1, 1))
    return y.permute(0, 2, 3, 4, 1).to(weight.dtype).contiguous()


def scaled(frames: Tensor) -> Tensor:
    """Bytes to [-1, 1], in float32."""
    return frames.to(torch.float32).mul_(2).sub_(255).div_(255)


def frame_conv(frames: Tensor, weight: Tensor, bias: Tensor, chunks: Sequence[int]) -> tuple[Tensor, Moments | None]:
    """A 3 x 3 x 3 convolution over a frame and the two before it, of pixels scaled from bytes to [-1, 1].

    Zeros surround a frame; the first one stands for those before it. Products are of pixels in the weight's dtype, sums
    in float32. No gradients.

    Args:
        frames: (B, T, H, W, 3) uint8; copied unless contiguous.
        weight: (N, 3, 3, 3, 3) of any floating dtype, in any layout: outputs, colours, time, height, width.
        bias: (N,) of any floating dtype.
        chunks: lengths of the pieces of T frames whose moments are wanted; from the second on they are equal.

    Returns:
        (B, T, H, W, N) in the weight's dtype, and the moments of its chunks, a clip's after one another; None off
        Triton.

    Raises:
        ValueError: other shapes, or frames that are not bytes.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be (B, T, H, W, 3) uint8, not {tuple(frames.shape)} {frames.dtype}")
    outputs = weight.shape[0]
    if weight.shape[1:] != (3, 3, 3, 3) or bias.shape != (outputs,):
        raise ValueError(
            f"weight must be (N, 3, 3, 3, 3) and bias (N,), not {tuple(weight.shape)}, {tuple(bias.shape)}"
        )
    if sum(chunks) != frames.shape[1] or min(chunks) < 1 or len(set(chunks[1:])) > 1:
        raise ValueError(f"chunks of {list(chunks)} frames: must be equal but for the first, and make up all")
    if not runs_triton(weight, bias, frames) or frames.numel() == 0:
        return frame_conv_reference(frames, weight, bias), None
    clips, times, height, width, _ = frames.shape
    places = clips * (times + 2) * (height + 2) * (width + 2)
    matrix = torch.empty((places + ROW // PLACE) * PLACE, dtype=weight.dtype, device=frames.device)
    _pack[(clips * (times + 2), -(-(height + 2) * (width + 2) // BLOCK))](
        frames.contiguous(), matrix, times, height, width, places, BLOCK=BLOCK, PLACE=PLACE, num_warps=4
    )
    rows = weight.new_zeros(outputs, 3, 3, ROW // PLACE, PLACE)
    rows[..., :3, :3] = weight.permute(0, 2, 3, 4, 1)
    out = torch.empty(clips, times, height, width, outputs, dtype=weight.dtype, device=frames.device)
    windows = matrix.as_strided((places, ROW), (PLACE, 1))
    moments = shifted_products(windows, rows.flatten(1), bias, out, list(chunks), width + 2, 1)
    return out, moments


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _pack(frames, matrix, times, height, width, places, BLOCK: tl.constexpr, PLACE: tl.constexpr):
        """Program (padded frame, block): its pixels with PLACE numbers each; and once the row beyond the last one."""
        frame, block = tl.program_id(0), tl.program_id(1)
        clip, time = frame // (times + 2), tl.maximum(frame % (times + 2) - 2, 0)
        wide = width + 2
        plane = (height + 2) * wide
        place = block * BLOCK + tl.arange(0, BLOCK)
        line, at = place // wide - 1, place % wide - 1
        inner = (line >= 0) & (line < height) & (at >= 0) & (at < width)
        colour = tl.arange(0, PLACE)
        inside = inner[:, None] & (colour < 3)[None, :]
        source = (clip * times + time).to(tl.int64) * height * width
        where = (source + line * width + at)[:, None] * 3 + colour[None, :]
        pixel = (tl.load(frames + where, mask=inside, other=0).to(tl.float32) * 2.0 - 255.0) / 255.0
        pixel = tl.where(inside, pixel, 0.0).to(matrix.dtype.element_ty)
        target = (frame.to(tl.int64) * plane + place)[:, None] * PLACE + colour[None, :]
        tl.store(matrix + target, pixel, mask=(place < plane)[:, None] & (colour >= 0)[None, :])
        if (frame == 0) & (block == 0):
            beyond = places.to(tl.int64) * PLACE + tl.arange(0, 32)
            tl.store(matrix + beyond, tl.zeros([32], matrix.dtype.element_ty))
