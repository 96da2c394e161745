"""Picks the frame of a video that shows the goal best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genreward_fast.errors import UserError

if TYPE_CHECKING:
    from genreward_fast.encoders.clip import TextImageEncoder

TEMPLATES: tuple[str, ...] = (
    "{}",
    "a photo of a robot arm that has just managed to {}",
    "a picture of the moment when the task is done: {}",
    "the last frame of a video of a robot that was told to {}",
    "a robotic gripper at the end of this task: {}",
)
"""Sentences that a task's words are put into; their embeddings are averaged (arXiv 2512.00961: several prompts)."""


@dataclass(frozen=True, eq=False)
class Selection:
    """A chosen frame and the reasons.

    Attributes:
        index: the frame, counted from 0.
        method: `clip`, `last` or `index`.
        scores: (T,) float32 on the CPU, cosine of each frame and the text; None without an encoder.
        frame_embeddings: (T, D) float32 on the CPU, unit norm; None without an encoder.
        text_embedding: (D,) float32 on the CPU, unit norm; None without an encoder.
        margin: score of the chosen frame minus the median score. Near 0, the encoder sees no difference among frames;
            the runner-up is no measure, as neighbouring frames look alike. None without an encoder.
    """

    index: int
    method: str
    scores: Tensor | None = field(default=None, repr=False)
    frame_embeddings: Tensor | None = field(default=None, repr=False)
    text_embedding: Tensor | None = field(default=None, repr=False)
    margin: float | None = None


def embed_text(text: str, encoder: TextImageEncoder, templates: Sequence[str] = TEMPLATES) -> Tensor:
    """(D,) float32 unit vector: the templates' unit embeddings averaged and normalised again.

    Raises:
        UserError: the text is empty, or a template has no place for it.
    """
    text = text.strip()
    if not text:
        raise UserError("text: is empty; say what the robot is to do")
    if not templates or any(template.count("{}") != 1 for template in templates):
        raise UserError(f"prompt templates {list(templates)}: each must contain {{}} once, where the text goes")
    mean = encoder.encode_text([template.replace("{}", text) for template in templates]).mean(0)
    return torch.nn.functional.normalize(mean, dim=0)


def select_frame(
    video: Tensor,
    text: str,
    encoder: TextImageEncoder | None,
    select: str | int = "clip",
    templates: Sequence[str] = TEMPLATES,
) -> Selection:
    """Scores every frame against the text and chooses one.

    Args:
        video: (T, H, W, 3) uint8 RGB.
        text: the task in words.
        encoder: needed for `clip`; scores frames for the other methods too, if given.
        select: `clip`, the frame with the highest cosine, the first of equals; `last`; or an index, which may be
            negative to count from the end.
        templates: see `TEMPLATES`.

    Raises:
        UserError: no such frame or method, or no encoder where one is needed.
    """
    total = len(video)
    if isinstance(select, str) and select.lstrip("-").isdigit():
        select = int(select)
    if isinstance(select, int):
        if not -total <= select < total:
            raise UserError(f"frame {select}: the video has frames 0 to {total - 1}")
        index, method = select % total, "index"
    elif select == "last":
        index, method = total - 1, "last"
    elif select == "clip":
        index, method = -1, "clip"
    else:
        raise UserError(f"select {select!r}: use clip, last or a frame's number")
    if encoder is None:
        if method == "clip":
            raise UserError("select clip: needs the text and image encoder; give one, or use last or a frame's number")
        return Selection(index, method)
    text_embedding = embed_text(text, encoder, templates)
    frame_embeddings = encoder.encode_images(video)
    scores = (frame_embeddings @ text_embedding).cpu()
    if method == "clip":
        index = int(scores.argmax())
    return Selection(
        index=index,
        method=method,
        scores=scores,
        frame_embeddings=frame_embeddings.cpu(),
        text_embedding=text_embedding.cpu(),
        margin=float(scores[index] - scores.median()),
    )
