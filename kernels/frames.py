"""From uint8 frames to what an image encoder reads: resized, cropped and normalised as its own library does it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from genreward_fast.kernels.image_blocks import strides
from genreward_fast.kernels.triton_support import HAS_TRITON, runs_triton

ROWS = 8
# Three colours of so many columns over three. With one warp, every thread keeps its columns through both passes.
COLUMNS = 128
WARPS = 1
_BITS = 22  # behind the point, in the weights with which Pillow resizes bytes
_REACH = {"bilinear": 1, "bicubic": 2}


@dataclass(frozen=True)
class FrameFormat:
    """What an encoder wants of a frame.

    Attributes:
        size: (height, width) in pixels.
        mean, std: of each colour, of values in [0, 1].
        interpolation: `bilinear` or `bicubic`; both with antialiasing where frames shrink.
        crop: scale the shorter side to `size`, which must be a square, and cut out the middle; else squash.
        bytes_between: round to uint8 after each of the two passes, in fixed point: what Pillow does. Columns are the
            first pass, as in every Pillow until 12; 13 begins with rows where they lose more than twice as many pixels
            as columns do, as frames do that are cropped and more than twice as high as wide. Else resize in floating
            point, as PyTorch does.

    Raises:
        ValueError: another interpolation, no pixels, or a crop that is no square.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    crop: bool = False
    bytes_between: bool = False

    def __post_init__(self) -> None:
        if self.interpolation not in _REACH:
            raise ValueError(f"interpolation {self.interpolation!r}: use one of: {', '.join(_REACH)}")
        if min(self.size) < 1 or (self.crop and self.size[0] != self.size[1]):
            raise ValueError(f"size {self.size}: must be positive, and a square if frames are cropped")

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """To what height and width frames are resized before they are cropped."""
        if not self.crop:
            return self.size
        side, short = self.size[0], min(height, width)
        return int(side * height / short), int(side * width / short)

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Row and column of the resized frame where the crop begins; halves go to the even one, as in torchvision."""
        top, left = (round((whole - part) / 2) for whole, part in zip(self.resized(height, width), self.size))
        return top, left


class _Taps(NamedTuple):
    """One pass of a resize: which pixels each result is the weighted sum of.

    Attributes:
        start: (R,) int32, the first of the K pixels; all K lie inside the frame.
        weight: (K, R), int32 in units of 2^-22 or float32.
    """

    start: Tensor
    weight: Tensor


class _Tables(NamedTuple):
    """What the kernel reads beside frames.

    Attributes:
        rows, columns: the taps of the second and the first pass.
        spans: (blocks, 2) int32, first and one after the last row of a frame that each block of `ROWS` results needs.
        colour: (2, 3) float32, mean and deviation.
    """

    rows: _Taps
    columns: _Taps
    spans: Tensor
    colour: Tensor


def _filter(x: Tensor, interpolation: str) -> Tensor:
    """Weight at a distance of |x| pixels; the cubic is Keys' with a = -1/2."""
    x = x.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp(min=0)
    near, far = (1.5 * x - 2.5) * x * x + 1, -0.5 * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def _weights(size: int, resized: int, first: int, count: int, interpolation: str) -> Tensor:
    """(count, size) float64: results `first` … of a pass from `size` pixels to `resized`, as sums over the pixels."""
    scale = size / resized
    stretch = max(scale, 1.0)
    reach = _REACH[interpolation] * stretch
    centre = ((torch.arange(first, first + count, dtype=torch.float64) + 0.5) * scale)[:, None]
    pixel = torch.arange(size, dtype=torch.float64)
    weight = _filter((pixel - centre + 0.5) * (1 / stretch), interpolation)
    inside = (pixel >= (centre - reach + 0.5).trunc()) & (pixel < (centre + reach + 0.5).trunc())
    weight = torch.where(inside, weight, 0)
    return weight / weight.sum(1, keepdim=True)


def _taps(size: int, resized: int, first: int, count: int, how: FrameFormat) -> _Taps:
    weight = _weights(size, resized, first, count, how.interpolation)
    if how.bytes_between:
        weight = (weight.abs() * 2**_BITS + 0.5).floor().copysign(weight).to(torch.int32)
    else:
        weight = weight.to(torch.float32)
    used = (weight != 0).int()
    start, end = used.argmax(1), size - used.flip(1).argmax(1)
    taps = int((end - start).max())
    start = start.clamp(max=size - taps)
    weight = weight.gather(1, start[:, None] + torch.arange(taps))
    return _Taps(start.int(), weight.T.contiguous())


# What is cached is never given up: a CUDA graph that has read a table reads it again. Few sizes of frames come.
@functools.cache
def _passes(how: FrameFormat, height: int, width: int, device: torch.device) -> tuple[_Taps, _Taps]:
    """The taps of rows, which are the second pass, and of columns."""
    sides = zip((height, width), how.resized(height, width), how.corner(height, width), how.size)
    rows, columns = (_Taps(*(x.to(device) for x in _taps(*side, how))) for side in sides)
    return rows, columns


@functools.cache
def _tables(how: FrameFormat, height: int, width: int, device: torch.device) -> _Tables:
    rows, columns = _passes(how, height, width, device)
    ends = [(block.min(), block.max() + len(rows.weight)) for block in rows.start.split(ROWS)]
    spans = torch.stack([torch.stack(pair) for pair in ends])
    colour = torch.tensor([how.mean, how.std], dtype=torch.float32)
    return _Tables(rows, columns, spans, colour.to(device))


def _weighted(values: Tensor, dim: int, taps: _Taps) -> Tensor:
    """One pass along `dim` of (N, H, W, 3) int32, rounded to bytes."""
    shape = [-1 if axis == dim else 1 for axis in range(4)]
    total = torch.full((), 1 << (_BITS - 1), dtype=torch.int32, device=values.device)
    for tap, weight in enumerate(taps.weight):
        total = total + values.index_select(dim, taps.start + tap) * weight.view(shape)
    # Not a shift, which TensorRT lacks; the same, as nothing is negative.
    return (total.clamp(min=0) // (1 << _BITS)).clamp(max=255)


def frames_reference(image: Tensor, how: FrameFormat, dtype: torch.dtype, index: Tensor | None = None) -> Tensor:
    """What `frames` computes, in plain PyTorch: in float32, or in float64 if that is `dtype`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    # TensorRT does nothing with bytes but convert them, so until then no view is made of what comes as it should.
    image = image if image.ndim == 4 else image.reshape(-1, *image.shape[-3:])
    image = image if index is None else image[index]
    height, width = image.shape[1:3]
    resized, (top, left) = how.resized(height, width), how.corner(height, width)
    if how.bytes_between:
        rows, columns = _passes(how, height, width, image.device)
        pixels = _weighted(_weighted(image.int(), 2, columns), 1, rows).permute(0, 3, 1, 2).to(wide) / 255
    else:
        pixels = image.to(wide).permute(0, 3, 1, 2) / 255
        if resized != (height, width) and len(pixels):
            pixels = functional.interpolate(pixels, resized, mode=how.interpolation, antialias=True)
        pixels = pixels[:, :, top : top + how.size[0], left : left + how.size[1]]
    planes = [(pixels[:, colour] - mean) / std for colour, (mean, std) in enumerate(zip(how.mean, how.std))]
    return torch.stack(planes, -1).to(dtype).permute(0, 3, 1, 2)


def frames(image: Tensor, how: FrameFormat, dtype: torch.dtype, index: Tensor | None = None) -> Tensor:
    """Frames as an encoder reads them: resized, cropped, scaled to [0, 1] and normalised. Without gradients.

    The first call for a format, a size and a device makes small tables there; later ones can be captured.

    Args:
        image: (..., H, W, 3) uint8; N frames, which are not copied if they are dense and have up to two leading axes.
        how: what the encoder wants.
        dtype: of the result, the only rounding of normalised values.
        index: (M,) int64, on the same device: which of the N frames to take, each from 0 to N - 1, which is not checked
            on a GPU; None for all of them in order.

    Returns:
        (M, 3, *how.size) with the colours of a pixel side by side: `torch.channels_last`.

    Raises:
        ValueError: an image of another shape or dtype.
    """
    if image.dtype != torch.uint8 or image.ndim < 3 or image.shape[-1] != 3 or not image.shape[-3:].numel():
        raise ValueError(f"frames must be (..., H, W, 3) uint8, not {tuple(image.shape)} {image.dtype}")
    if dtype == torch.float64 or not runs_triton(image):
        return frames_reference(image, how, dtype, index)
    height, width = image.shape[-3:-1]
    count = image.shape[:-3].numel() if index is None else len(index)
    rows, columns, spans, colour = _tables(how, height, width, image.device)
    out = torch.empty((count, *how.size, 3), dtype=dtype, device=image.device)
    image, per, outer, inner = strides(image)
    across = -(-3 * how.size[1] // COLUMNS)
    if count:
        _forward[(count * len(spans) * across,)](
            image,
            image if index is None else index.contiguous(),
            out,
            *rows,
            *columns,
            spans,
            colour,
            *how.size,
            width,
            len(rows.weight),
            len(columns.weight),
            per,
            outer,
            inner,
            GATHER=index is not None,
            BITS=_BITS if how.bytes_between else 0,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            num_warps=WARPS,
        )
    return out.permute(0, 3, 1, 2)


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _settled(total, BITS: tl.constexpr):
        """The end of a pass: bytes from fixed point; floats stay."""
        if BITS:
            total = tl.minimum(tl.maximum((total + (1 << (BITS - 1))) >> BITS, 0), 255)
        return total

    @triton.jit
    def _forward(
        image,
        index,
        out,
        row_start,
        row_weight,
        column_start,
        column_weight,
        spans,
        colour,
        height,
        width,
        pitch,
        row_taps,
        column_taps,
        per,
        outer,
        inner,
        GATHER: tl.constexpr,
        BITS: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        """A block of results: each row of the frame that it needs is resized once, and added wherever it belongs."""
        across, down = tl.cdiv(3 * width, COLUMNS), tl.cdiv(height, ROWS)
        program = tl.program_id(0)
        result = (program // (across * down)).to(tl.int64)
        block = program // across % down
        source = result
        if GATHER:
            source = tl.load(index + result)
        row = (block * ROWS + tl.arange(0, ROWS))[:, None]
        place = (program % across * COLUMNS + tl.arange(0, COLUMNS))[None, :]
        column, channel = tl.minimum(place // 3, width - 1), place % 3
        nearest = tl.minimum(row, height - 1)
        start = tl.load(row_start + nearest)
        first = image + (source // per * outer + source % per * inner) + tl.load(column_start + column) * 3 + channel

        kind: tl.constexpr = row_weight.dtype.element_ty
        total = tl.zeros((ROWS, COLUMNS), kind)
        for y in range(tl.load(spans + 2 * block), tl.load(spans + 2 * block + 1)):
            at = first + y * (3 * pitch)
            line = tl.zeros((1, COLUMNS), kind)
            for tap in tl.range(0, column_taps, loop_unroll_factor=4):
                weight = tl.load(column_weight + tap * width + column)
                line += tl.load(at + 3 * tap).to(kind) * weight
            tap = y - start
            weight = tl.load(row_weight + tap * height + nearest, mask=(tap >= 0) & (tap < row_taps), other=0)
            total += weight * _settled(line, BITS)

        value = _settled(total, BITS).to(tl.float32)
        value = tl.div_rn(value, tl.full(value.shape, 255.0, tl.float32))
        mean, std = tl.load(colour + channel), tl.load(colour + 3 + channel)
        value = tl.div_rn(value - mean, tl.broadcast_to(std, value.shape))
        to = (result * height + row) * (3 * width) + place
        inside = (row < height) & (place < 3 * width)
        tl.store(out + to, value.to(out.dtype.element_ty), mask=inside)
