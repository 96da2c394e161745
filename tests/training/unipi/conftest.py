"""A toy world with exact inverse dynamics, and demonstrations of it in a folder such as `genreward demos` writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genreward_fast.goals.demo_actions import write_actions
from genreward_fast.goals.video_io import write_video
from genreward_fast.training.unipi.fitting import FitConfig, FitResult, fit_inverse_dynamics

SIDE = 24
GREY = 20  # levels that an action of 1 adds


class FourLamps:
    """Each quarter of the picture is grey of one level; action i changes the i-th by up to 20 of 255 levels.

    So the mean action between two pictures is their difference over the steps between them, exactly.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.levels = 60 + 130 * torch.rand(4, generator=generator)

    def step(self, action: Tensor) -> None:
        self.levels = (self.levels + GREY * action).clamp(0, 255)

    def picture(self) -> Tensor:
        """(24, 24, 3) uint8."""
        quarters = self.levels.round().to(torch.uint8).view(2, 2)
        return quarters.repeat_interleave(SIDE // 2, 0).repeat_interleave(SIDE // 2, 1)[..., None].repeat(1, 1, 3)

    def action(self, generator: torch.Generator) -> Tensor:
        """(4,) float32, random, but away from the ends of the scale."""
        drawn = torch.rand(4, generator=generator) * 1.8 - 0.9
        return torch.where((self.levels < 40) | (self.levels > 215), drawn.abs() * (127.5 - self.levels).sign(), drawn)


def play(steps: int, generator: torch.Generator, hold: int = 1) -> tuple[Tensor, Tensor]:
    """Pictures (steps + 1, 24, 24, 3) uint8, and actions (steps, 4) float32, of which each is taken `hold` times."""
    world = FourLamps(generator)
    pictures, actions = [world.picture()], []
    for step in range(steps):
        actions.append(actions[-1] if step % hold else world.action(generator))
        world.step(actions[-1])
        pictures.append(world.picture())
    return torch.stack(pictures), torch.stack(actions)


def save_demos(folder: Path, generator: torch.Generator, count: int = 12, steps: int = 20) -> Path:
    """Clips of the toy world, said to be of the task `reach`."""
    lines = []
    for number in range(count):
        pictures, actions = play(steps, generator)
        line = {"file": f"clips/reach-{number:04d}.mp4", "actions": f"clips/reach-{number:04d}.safetensors"}
        write_video(folder / line["file"], pictures)
        write_actions(folder / line["actions"], actions.numpy())
        known = {"task": "reach", "number": number, "captions": ["reach"], "frames": steps + 1}
        lines.append(json.dumps({**line, **known, "camera": "corner", "size": SIDE}) + "\n")
    shared = {"format": "genreward demonstrations", "version": 1, "rendering": "fast"}
    (folder / "demos.json").write_text(json.dumps(shared))
    (folder / "demos.jsonl").write_text("".join(lines))
    return folder


def config_of(data: Path, out: Path, **changes: object) -> FitConfig:
    settings = {"steps": 400, "batch_size": 32, "lr": 2e-3, "warmup": 20, "height": SIDE, "width": SIDE, "channels": 8}
    return FitConfig(data, out, device="cpu", **{**settings, **changes})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def one_thread():
    """Products as small as these only wait for each other on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def toy_play() -> Callable[..., tuple[Tensor, Tensor]]:
    return play


@pytest.fixture
def toy_world() -> type[FourLamps]:
    return FourLamps


@pytest.fixture
def toy_config() -> Callable[..., FitConfig]:
    return config_of


@pytest.fixture(scope="session")
def toy_demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return save_demos(tmp_path_factory.mktemp("toy") / "demos", torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def toy_fit(toy_demos: Path, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """Inverse dynamics fitted to the toy world. Read only."""
    return fit_inverse_dynamics(config_of(toy_demos, tmp_path_factory.mktemp("toy") / "fitted"))
