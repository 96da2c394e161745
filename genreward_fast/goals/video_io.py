"""Videos in and out of files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.files import atomic_path


def read_video(path: str | Path, *, start: float = 0.0, length: int | None = None) -> tuple[Tensor, float]:
    """All frames of a video file, or of a part of it, in RGB.

    Args:
        start: seconds into the file at which the part begins.
        length: frames of the part; None for all from there on.

    Returns:
        (T, H, W, 3) uint8 on the CPU, T ≥ 2; frames per second.

    Raises:
        UserError: missing, not a video, damaged, shorter than two frames, or without such a part.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such video file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path}: has no video stream; pass a video file such as an mp4")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            promised, rate = stream.frames, stream.average_rate
            pictures = container.decode(stream)
            if start > 0 or length is not None:
                promised = length or 0
                pictures = _part(container, stream, start, length)
            frames = [frame.to_ndarray(format="rgb24") for frame in pictures]
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be decoded ({error.__class__.__name__}); it is damaged or not a video"
        ) from error
    if len(frames) < promised:
        raise UserError(f"{path}: damaged, only {len(frames)} of its {promised} frames can be decoded")
    if len(frames) < 2:
        raise UserError(f"{path}: has {len(frames)} frame, a video needs at least 2")
    if any(frame.shape != frames[0].shape for frame in frames):
        raise UserError(f"{path}: its frames change size; re-encode it at one size")
    return torch.from_numpy(np.stack(frames)), float(rate) if rate else 8.0


def _part(container: Any, stream: Any, start: float, length: int | None) -> Iterator[Any]:
    """The frames from `start` seconds on, `length` of them; nearest to `start` is the first."""
    half_frame = 0.5 / float(stream.average_rate or 8)
    # A second early: the key frame found is then never one that is shown later than `start`, though decoded before.
    container.seek(int(max(start - 1.0, 0.0) / stream.time_base), stream=stream)
    wanted = (frame for frame in container.decode(stream) if (frame.time or 0.0) >= start - half_frame)
    return itertools.islice(wanted, length)


def write_video(path: str | Path, frames: Tensor, fps: float = 8.0) -> None:
    """Writes an H.264 mp4 (yuv420p, BT.601) that plays in browsers, atomically.

    Odd sides are padded by repeating the last row or column, which the chroma subsampling needs.

    Args:
        path: ends in .mp4.
        frames: (T, H, W, 3) uint8 RGB, T ≥ 1.
        fps: frames per second, above 0.

    Raises:
        UserError: the path does not end in .mp4, or fps is not above 0.
        ValueError: frames of another shape or dtype.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise UserError(f"{path}: a video's file name must end in .mp4")
    if not fps > 0:
        raise UserError(f"fps {fps}: must be above 0")
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames must be (T, H, W, 3) uint8, T > 0, not {tuple(frames.shape)} {frames.dtype}")
    height, width = frames.shape[1:3]
    padding = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    pictures = np.pad(frames.cpu().numpy(), padding, mode="edge")
    with atomic_path(path) as temporary, av.open(str(temporary), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "16", "preset": "medium"}
        # Stated, because players guess the matrix from the height where it is not.
        stream.codec_context.colorspace = av.video.reformatter.Colorspace.ITU601
        stream.codec_context.color_range = av.video.reformatter.ColorRange.MPEG
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(
                format="yuv420p",
                dst_colorspace=av.video.reformatter.Colorspace.ITU601,
                dst_color_range=av.video.reformatter.ColorRange.MPEG,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
