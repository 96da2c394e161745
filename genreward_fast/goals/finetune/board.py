"""Numbers and videos for TensorBoard."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from genreward_fast.goals.video_io import write_video


class Board:
    """Writes `folder/tensorboard`, and videos as mp4 files into `folder/validation` too."""

    def __init__(self, folder: Path, step: int) -> None:
        """
        Args:
            step: where the run goes on; what was written after it comes again.
        """
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.folder = folder
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def video(self, step: int, name: str, frames: Tensor, fps: float) -> None:
        """
        Args:
            frames: (T, H, W, 3) uint8.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        write_video(self.folder / "validation" / f"{name}-step{step:06d}.mp4", frames, fps)
        # The writer's own add_video needs one more library for the same animated picture.
        pictures = [Image.fromarray(frame.numpy()) for frame in frames]
        encoded = io.BytesIO()
        pictures[0].save(encoded, "GIF", save_all=True, append_images=pictures[1:], duration=int(1000 / fps), loop=0)
        height, width = frames.shape[1:3]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded.getvalue())
        value = Summary.Value(tag=f"validation/{name}", image=image)
        self._writer.file_writer.add_summary(Summary(value=[value]), step)

    def close(self) -> None:
        self._writer.close()
