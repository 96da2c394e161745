"""Writing a part's weights with its model card; what is already there is replaced only by something whole."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from genreward_fast.errors import RunFailed
from genreward_fast.files import atomic_path
from genreward_fast.goals.assets.loop import LoopConfig, Trained
from genreward_fast.goals.assets.plan import MAX_BYTES

CARD = "README.md"


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on CUDA; elsewhere nothing changes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@contextlib.contextmanager
def saved_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in temporary.rglob("*.safetensors"):
            file.chmod(0o644)  # the library makes files that only their owner can read
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_card(
    folder: Path, what: str, trained: Trained, config: LoopConfig, measured: Mapping[str, Any], limits: str
) -> None:
    """The model card: data, steps, losses, limits, seed."""
    losses = ", ".join(f"{name} {value:.4g}" for name, value in trained.losses.items())
    text = f"""# {what}

Part of genreward-fast's preset `tiny`, trained from random weights by `genreward assets build`.

- Data: episodes of Meta-World's scripted experts, of the experts turned random half way, and of random actions.
- Steps: {trained.steps} in {trained.seconds / 60:.1f} minutes; seed {config.seed}; AdamW, learning rate {config.lr:g}.
- Last losses: {losses}.
- On held-out episodes: {json.dumps(dict(measured))}.
- Limits: {limits}
"""
    with atomic_path(folder / CARD) as temporary:
        temporary.write_text(text)


def sizes(root: Path) -> dict[str, int]:
    """Bytes of the files in each folder of `root`.

    Raises:
        RunFailed: together they are more than may ship.
    """
    parts = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {part.name: sum(file.stat().st_size for file in part.rglob("*") if file.is_file()) for part in parts}
    if sum(found.values()) > MAX_BYTES:
        raise RunFailed(f"{root}: {sum(found.values())} bytes, more than {MAX_BYTES}: {found}")
    return found
