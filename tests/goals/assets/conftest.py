"""Recordings small enough to train on for a few steps: a coloured square that moves, and grows once it is solved."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from genreward_fast.goals.assets.plan import BuildFolder, RecordingConfig
from genreward_fast.goals.assets.recordings import read_recordings

TASKS = ("pick-place", "drawer-open", "button-press")
LENGTH, SOLVED = 20, 14
EPISODES = (
    ("expert", False), ("expert", False), ("random", False),
    ("expert", True), ("half-expert", True), ("random", True),
)  # fmt: skip


def picture(size: int, colour: int, row: float, column: float, solved: bool) -> np.ndarray:
    frame = np.full((size, size, 3), 90, np.uint8)
    side = size // 2 if solved else size // 4
    top, left = int(row * (size - side)), int(column * (size - side))
    frame[top : top + side, left : left + side, colour] = 255
    return frame


@pytest.fixture
def toy(tmp_path):
    """A build's folder with recordings of three tasks, 16, 32 and 64 pixels wide, and their configuration."""
    random = np.random.default_rng(0)
    folder = BuildFolder(tmp_path / "build")
    for colour, task in enumerate(TASKS):
        frames = {size: [] for size in (16, 32, 64)}
        states, lines = [], []
        for number, (kind, held) in enumerate(EPISODES):
            begin, end = random.random((2, 2))
            for t in range(LENGTH):
                place = begin + (end - begin) * t / LENGTH
                for size, pictures in frames.items():
                    pictures.append(picture(size, colour, *place, kind == "expert" and t >= SOLVED))
                states.append(np.r_[place, 0, 0, place, np.zeros(33)])
            solved = SOLVED if kind == "expert" else None
            lines.append({"kind": kind, "held_out": held, "seed": number, "frames": LENGTH, "solved_from": solved})
        tensors = {f"frames_{size}": np.stack(pictures) for size, pictures in frames.items()}
        tensors["states"] = np.stack(states).astype(np.float32)
        folder.recording(task).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder.recording(task), {"episodes": json.dumps(lines)})
    return folder, RecordingConfig(tasks=TASKS, sizes=(64, 32))


@pytest.fixture
def recordings(toy):
    folder, config = toy
    return read_recordings(folder, config.tasks, (64,), torch.device("cpu"))
