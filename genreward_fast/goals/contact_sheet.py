"""One picture that shows a goal video at a glance: its frames, their scores, and the chosen one."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genreward_fast.goals.frames import uniform_indices

_MAX_FRAMES = 49  # what the video model generates
_BACKGROUND = (250, 250, 250)
_INK = (32, 32, 32)
_FAINT = (120, 120, 120)
_TRACK = (226, 226, 226)
_BAR = (96, 140, 196)
_CHOSEN = (214, 84, 16)


def contact_sheet(
    frames: Tensor,
    selected: int,
    scores: Tensor | None = None,
    *,
    title: str = "",
    note: str = "",
    columns: int | None = None,
    tile_width: int = 240,
) -> Image.Image:
    """Draws up to 49 frames, evenly spaced, and the selected one among them, each with its index and score.

    The bar below a frame is its score between the lowest and the highest of all frames.

    Args:
        frames: (T, H, W, 3) uint8 RGB.
        selected: the chosen frame's index, which is framed.
        scores: (T,) float.
        title: a line above the frames, cut off where it does not fit.
        note: a fainter line below it.
        columns: 5 for up to 25 frames and 7 for more, if not given.
    """
    total, height, width = frames.shape[:3]
    shown = list(range(total)) if total <= _MAX_FRAMES else uniform_indices(total, _MAX_FRAMES)
    if selected not in shown:
        nearest = min(range(len(shown)), key=lambda i: abs(shown[i] - selected))
        shown[nearest] = selected
    columns = min(columns or (5 if len(shown) <= 25 else 7), len(shown))
    tile_height = max(1, round(tile_width * height / width))
    gap, label = 14, 34
    cell_width, cell_height = tile_width + gap, tile_height + label + gap
    rows = math.ceil(len(shown) / columns)
    top = gap + (38 if title else 0) + (26 if note else 0)
    sheet = Image.new("RGB", (gap + columns * cell_width, top + rows * cell_height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    limit = sheet.width - 2 * gap
    if title:
        draw.text((gap, gap - 2), _fit(title, _font(22, bold=True), limit), font=_font(22, bold=True), fill=_INK)
    if note:
        draw.text((gap, gap + (34 if title else 0)), _fit(note, _font(15), limit), font=_font(15), fill=_FAINT)
    for place, index in enumerate(shown):
        left = gap + place % columns * cell_width
        upper = top + place // columns * cell_height
        picture = Image.fromarray(frames[index].cpu().numpy()).resize(
            (tile_width, tile_height), Image.Resampling.LANCZOS
        )
        if index == selected:
            draw.rectangle((left - 5, upper - 5, left + tile_width + 4, upper + tile_height + label - 2), fill=_CHOSEN)
        sheet.paste(picture, (left, upper))
        _draw_label(draw, left, upper + tile_height, tile_width, index, scores, chosen=index == selected)
    return sheet


def _draw_label(
    draw: ImageDraw.ImageDraw, left: int, upper: int, width: int, index: int, scores: Tensor | None, chosen: bool
) -> None:
    ink = (255, 255, 255) if chosen else _INK
    draw.text((left + 2, upper + 3), f"{index}  goal" if chosen else str(index), font=_font(16, bold=chosen), fill=ink)
    if scores is None:
        return
    text = f"{float(scores[index]):.4f}"
    draw.text((left + width - 2, upper + 3), text, font=_font(16, bold=chosen), fill=ink, anchor="ra")
    low, high = float(scores.min()), float(scores.max())
    share = (float(scores[index]) - low) / (high - low) if high > low else 1.0
    draw.rectangle((left, upper + 25, left + width - 1, upper + 29), fill=_TRACK if not chosen else (236, 160, 116))
    if share > 0:
        fill = (255, 255, 255) if chosen else _BAR
        draw.rectangle((left, upper + 25, left + max(1, round(share * width)) - 1, upper + 29), fill=fill)


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text in one line, with an ellipsis where it is too long."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
