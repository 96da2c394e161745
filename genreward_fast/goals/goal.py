"""What an agent is to reach: a video, one frame of it, and how both came to be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genreward_fast.encoders.presets import EncoderConfig, shared_encoders
from genreward_fast.errors import UserError
from genreward_fast.goals import goal_files
from genreward_fast.goals.frames import to_square, uniform_indices
from genreward_fast.goals.selection import TEMPLATES, select_frame
from genreward_fast.goals.video_io import read_video

if TYPE_CHECKING:
    from genreward_fast.encoders.clip import TextImageEncoder


@dataclass(frozen=True, eq=False)
class Goal:
    """A goal video and its goal frame.

    Attributes:
        text: the task in words.
        video: (T, H, W, 3) uint8 RGB on the CPU, T ≥ 2.
        frame_index: which frame of `video` shows the goal.
        fps: frames per second of the video.
        provenance: where it comes from, as JSON: source, sha256 of the source, how the frame was selected,
            fingerprints of the encoders, a note on them, task and seed if there are any.
        scores: (T,) float32, each frame's cosine with the text; None if nothing was scored.
        frame_embeddings: (T, D) float32, unit norm; None likewise.
        text_embedding: (D,) float32, unit norm; None likewise.

    Raises:
        ValueError: a field has another shape, dtype or range, or the provenance is not JSON.
    """

    text: str
    video: Tensor = field(repr=False)
    frame_index: int
    fps: float = 8.0
    provenance: dict[str, Any] = field(default_factory=dict)
    scores: Tensor | None = field(default=None, repr=False)
    frame_embeddings: Tensor | None = field(default=None, repr=False)
    text_embedding: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        video = self.video
        if video.dtype != torch.uint8 or video.ndim != 4 or video.shape[-1] != 3 or len(video) < 2:
            raise ValueError(
                f"a goal's video must be (T, H, W, 3) uint8, T > 1, not {tuple(video.shape)} {video.dtype}"
            )
        total = len(video)
        if not 0 <= self.frame_index < total:
            raise ValueError(f"frame_index {self.frame_index} must lie in [0, {total})")
        if not self.text.strip():
            raise ValueError("a goal's text must not be empty")
        if not self.fps > 0:
            raise ValueError(f"fps {self.fps} must be above 0")
        object.__setattr__(self, "video", video.detach().cpu().contiguous())
        # As it will be read back, so that a saved and a fresh goal are the same.
        object.__setattr__(self, "provenance", json.loads(json.dumps(self.provenance, allow_nan=False)))
        dim = None if self.text_embedding is None else len(self.text_embedding)
        for name, shape in (("scores", (total,)), ("frame_embeddings", (total, dim)), ("text_embedding", (dim,))):
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if tensor.dtype != torch.float32 or tuple(tensor.shape) != shape:
                raise ValueError(f"{name} must be {shape} float32, not {tuple(tensor.shape)} {tensor.dtype}")
            object.__setattr__(self, name, tensor.detach().cpu().contiguous())

    @classmethod
    def from_video(
        cls,
        source: str | Path | Tensor,
        text: str,
        *,
        select: str | int = "clip",
        encoder: TextImageEncoder | None = None,
        fps: float | None = None,
        templates: Sequence[str] = TEMPLATES,
        provenance: Mapping[str, Any] | None = None,
    ) -> Goal:
        """Makes a goal of a video.

        Args:
            source: a video file, or (T, H, W, 3) uint8 RGB.
            text: the task in words.
            select: how the goal frame is chosen: `clip` (the frame most like the text), `last`, or a frame's index.
            encoder: scores the frames. None with `clip` loads the preset paper's; None otherwise scores nothing.
            fps: None for the file's own, or 8.
            templates: sentences that the text is put into.
            provenance: added to what is recorded here.

        Raises:
            UserError: a bad file, an empty text, no such frame or method, or weights that cannot be loaded.
        """
        if not text.strip():
            raise UserError("text: is empty; say what the robot is to do")
        if isinstance(source, Tensor):
            video, rate = source, 8.0
            record: dict[str, Any] = {"source": "frames"}
        else:
            video, rate = read_video(source)
            record = {"source": str(source), "source_sha256": goal_files.file_sha256(Path(source))}
        if encoder is None and select == "clip":
            encoder = shared_encoders(EncoderConfig()).text_image
        selection = select_frame(video, text, encoder, select, templates)
        record["select"] = selection.method
        if encoder is not None:
            record |= {
                "templates": list(templates),
                "margin": selection.margin,
                "encoders": {"clip": encoder.fingerprint},
                "note": encoder.note,
            }
        return cls(
            text=text.strip(),
            video=video,
            frame_index=selection.index,
            fps=fps or rate,
            provenance=record | dict(provenance or {}),
            scores=selection.scores,
            frame_embeddings=selection.frame_embeddings,
            text_embedding=selection.text_embedding,
        )

    @property
    def note(self) -> str:
        """What every output made with this goal must say about its encoders; usually ""."""
        return str(self.provenance.get("note", ""))

    @property
    def sha256(self) -> str:
        """Of the frames, their shape, the goal frame's index and the text: the goal's identity."""
        digest = hashlib.sha256(json.dumps([self.text, list(self.video.shape), self.frame_index]).encode())
        digest.update(self.video.numpy().data)
        return digest.hexdigest()

    def clip(self, length: int = 16, size: int = 480) -> Tensor:
        """`length` frames spread evenly over the video, first and last among them.

        Returns:
            (length, size, size, 3) uint8: the centre square of the shorter side, resized with antialiasing. Frames
            repeat if the video is shorter than `length`.
        """
        if length < 1:
            raise UserError(f"clip length {length}: must be at least 1")
        return to_square(self.video[uniform_indices(len(self.video), length)], size)

    def frame(self, size: int) -> Tensor:
        """(size, size, 3) uint8: the goal frame, cropped and resized as in `clip`."""
        return to_square(self.video[self.frame_index], size)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Writes the goal as a folder that appears complete or not at all: the frames and embeddings losslessly
        (frames.safetensors), goal.json, and to look at, goal.mp4 and contact_sheet.png.

        Args:
            overwrite: replace the goal that the folder holds.

        Raises:
            UserError: the folder holds a goal and `overwrite` is false, or it holds anything else.
        """
        tensors = {"video": self.video}
        for name in ("scores", "frame_embeddings", "text_embedding"):
            if getattr(self, name) is not None:
                tensors[name] = getattr(self, name)
        record = {
            "text": self.text,
            "frame_index": self.frame_index,
            "fps": self.fps,
            "shape": list(self.video.shape),
            "provenance": self.provenance,
        }
        return goal_files.write(Path(folder), record, tensors, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> Goal:
        """Reads a folder written by `save`.

        Raises:
            UserError: no such folder, a file is missing, foreign or altered, or what it holds is not a goal.
        """
        folder = Path(folder)
        record, tensors = goal_files.read(folder)
        try:
            if record.pop("shape") != list(tensors["video"].shape):
                raise ValueError("the video has another shape")
            fields: dict[str, Any] = record | tensors
            return cls(**fields)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{folder}: does not hold a goal ({error}); make it again with genreward goal") from error
