"""The folder that `genreward fit` writes for a reward with a model of expert frames.

DIR/fit.json         what it was fitted to, with which settings and losses, and the mean and deviation of its scores
DIR/codec/           the codec, in diffusers' format
DIR/model/           the model of the codes, in its library's format
DIR/checkpoint.pt    while it is being fitted
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genreward_fast.errors import UserError
from genreward_fast.files import read_json

RECORD, CODEC, MODEL = "fit.json", "codec", "model"
OPTION = "--reward-weights"
FORMAT = {"format": "genreward fit", "version": 1}


def save_whole(folder: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a folder beside `folder`, then puts it in its place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(temporary)
        temporary.chmod(0o755)  # mkdtemp makes folders that only their owner can open
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fitted_folder(weights: str, reward: str) -> tuple[Path, dict[str, Any]]:
    """The folder that was fitted for a reward, and its record.

    Args:
        weights: as given with `--reward-weights`.

    Raises:
        UserError: none is given, it is not there, not finished, damaged, or of another reward.
    """
    how = f"make one with: genreward fit {reward} --data DEMOS --out DIR"
    if not weights:
        raise UserError(f"--reward {reward} needs weights: name their folder with {OPTION}; {how}")
    folder = Path(weights).expanduser()
    if not (folder / RECORD).is_file():
        raise UserError(f"{OPTION} {weights}: has no {RECORD}, so it holds no finished weights; {how}")
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or any(record.get(key) != value for key, value in FORMAT.items()):
        raise UserError(f"{folder / RECORD}: does not describe weights of version {FORMAT['version']}; {how}")
    if record.get("reward") != reward:
        raise UserError(f"{OPTION} {weights}: was fitted for {record.get('reward')}, not for {reward}; {how}")
    if not all(isinstance(record.get(name), float) for name in ("mean", "deviation")) or record["deviation"] <= 0:
        raise UserError(f"{folder / RECORD}: has no mean and deviation of the scores; {how}")
    return folder, record
