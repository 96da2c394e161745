"""Draws docs/pictures/distracting_control.png: the six tasks with every kind of distraction and at every difficulty.

python benchmarks/envs/draw_distractions.py --out docs/pictures/distracting_control.png [--backgrounds DAVIS]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from genreward_fast.envs.control_config import ControlConfig
from genreward_fast.envs.control_env import ControlEnv
from genreward_fast.envs.control_tasks import ACTION_REPEATS
from genreward_fast.files import atomic_path

SIDE, GAP, HEAD = 112, 4, 22
INK = "#24292f"
COLUMNS: dict[str, dict[str, Any]] = {
    "none": {},
    "color, hard": {"distraction": "hard", "distraction_types": ("color",)},
    "camera, hard": {"distraction": "hard", "distraction_types": ("camera",)},
    "background": {"distraction": "hard", "distraction_types": ("background",)},
    "all, easy": {"distraction": "easy"},
    "all, medium": {"distraction": "medium"},
    "all, hard": {"distraction": "hard"},
}


def picture(task: str, seed: int, backgrounds: str | None, options: dict[str, Any]) -> Image.Image:
    """An episode's first picture."""
    if "background" in options.get("distraction_types", ("background",)) and options:
        options = {**options, "backgrounds": backgrounds}
    env = ControlEnv(ControlConfig(task, rendering="quality", **options))
    env.reset(seed=seed)
    pixels = env.render_sizes((2 * SIDE,))[2 * SIDE].copy()
    env.close()
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX)


def sheet(seed: int, backgrounds: str | None) -> Image.Image:
    """A row a task, a column of `COLUMNS` each."""
    width, height = len(COLUMNS) * (SIDE + GAP) - GAP, HEAD + len(ACTION_REPEATS) * (SIDE + GAP) - GAP
    page = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for column, (label, options) in enumerate(COLUMNS.items()):
        left = column * (SIDE + GAP)
        draw.text((left + SIDE / 2, HEAD / 2), label, fill=INK, font=font, anchor="mm")
        for row, task in enumerate(ACTION_REPEATS):
            page.paste(picture(task, seed + row, backgrounds, options), (left, HEAD + row * (SIDE + GAP)))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--backgrounds", help="a folder of videos; by default procedural ones")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # As many colours are enough to look at, in a fraction of the bytes.
    page = sheet(options.seed, options.backgrounds).quantize(192, method=Image.Quantize.MEDIANCUT)
    with atomic_path(options.out) as temporary:
        page.save(temporary, format="PNG", optimize=True)
    print(f"{options.out}: {np.prod(page.size)} pixels, {options.out.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
