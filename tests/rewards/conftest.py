"""Tiny stand-ins for encoders and goals, and batches to learn from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from genreward_fast.goals.video_io import write_video
from genreward_fast.rewards.config import FBConfig, RewardConfig
from genreward_fast.types import Batch, Window


class TinyVideoEncoder(nn.Module):
    """Clips to coarse colours over time: (B, K, 8, 8, 3) to (B, 3, K / 2, 2, 2)."""

    size = 8
    clip_length = 4
    note = ""

    def __init__(self, fingerprint: str = "video-1"):
        super().__init__()
        self.fingerprint = fingerprint
        self.calls = 0

    def forward(self, frames: Tensor) -> Tensor:
        self.calls += 1
        if frames.shape[1] % 2:
            raise ValueError("a clip must have 2n frames")
        pixels = frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        return functional.adaptive_avg_pool3d(pixels, (frames.shape[1] // 2, 2, 2))


class TinyImageEncoder(nn.Module):
    """Frames to a fixed random projection of their pixels: (N, 6, 6, 3) to (N, dim)."""

    size = 6
    note = "untrained encoders"

    def __init__(self, dim: int = 5, fingerprint: str = "image-1"):
        super().__init__()
        self.dim = dim
        self.fingerprint = fingerprint
        self.calls = 0
        self.register_buffer("weight", torch.randn(6 * 6 * 3, dim, generator=torch.Generator().manual_seed(0)) / 10)

    def forward(self, frames: Tensor) -> Tensor:
        self.calls += 1
        return (frames.flatten(1).float() / 127.5 - 1) @ self.weight


@dataclass(frozen=True)
class TinyGoal:
    """A goal video of seeded noise; the goal frame is its last one."""

    seed: int = 0

    def clip(self, length: int, size: int) -> Tensor:
        return self._noise(length, size)

    def frame(self, size: int) -> Tensor:
        return self._noise(4, size)[-1]

    def _noise(self, length: int, size: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(0, 256, (length, size, size, 3), dtype=torch.uint8, generator=generator)


def make_pairs(count: int, feature_dim: int = 5, action_size: int = 2, seed: int = 0) -> Batch:
    """Random pairs of rows, none of which begins or ends an episode."""
    generator = torch.Generator().manual_seed(seed)
    flags = torch.zeros(count, 2, dtype=torch.bool)
    return Batch(
        action=torch.rand(count, 2, action_size, generator=generator) * 2 - 1,
        reward=torch.zeros(count, 2),
        is_first=flags,
        is_last=flags,
        is_terminal=flags,
        index=torch.arange(2 * count).view(count, 2),
        feature=torch.randn(count, 2, feature_dim, generator=generator),
    )


def make_pairs_of(feature: Tensor, action: Tensor) -> Batch:
    """(B, 2, D) and (B, 2, A) as pairs of rows, none of which begins or ends an episode."""
    count = len(feature)
    return dataclasses.replace(make_pairs(count), feature=feature, action=action)


def make_window(reward_config: RewardConfig, count: int = 3, fresh: int | None = None, seed: int = 0) -> Window:
    """Windows of seeded noise that fit the tiny encoders."""
    generator = torch.Generator().manual_seed(seed)
    steps = reward_config.window
    clip = torch.randint(0, 256, (count, reward_config.clip_frames, 8, 8, 3), dtype=torch.uint8, generator=generator)
    return Window(
        clip=clip if reward_config.use_video else None,
        features=torch.randn(count, steps, 5, generator=generator) if reward_config.use_fb else None,
        action=torch.rand(count, steps, 2, generator=generator) * 2 - 1,
        env_reward=torch.zeros(count, steps),
        fresh=fresh or steps,
    )


@pytest.fixture(autouse=True)
def one_thread():
    """Products as small as these only wait for each other on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fb_config() -> FBConfig:
    return FBConfig(z_dim=8, hidden=16, lr=1e-3, batch=32)


@pytest.fixture
def reward_config(fb_config: FBConfig) -> RewardConfig:
    return RewardConfig(alpha=2.0, beta=0.5, window=12, clip_frames=4, interval=12, fb_steps=100, fb=fb_config)


@pytest.fixture
def pairs() -> Callable[..., Batch]:
    return make_pairs


@pytest.fixture
def pairs_of() -> Callable[[Tensor, Tensor], Batch]:
    return make_pairs_of


@pytest.fixture
def r_squared() -> Callable[[Tensor, Tensor], float]:
    """The share of the truth's variance that the learned values explain; negative for worse than its mean."""

    def of(learned: Tensor, truth: Tensor) -> float:
        error = (learned.double() - truth).square().sum()
        return 1 - (error / (truth - truth.mean()).square().sum()).item()

    return of


@pytest.fixture
def window() -> Callable[..., Window]:
    return make_window


@pytest.fixture
def video_encoder() -> TinyVideoEncoder:
    return TinyVideoEncoder()


@pytest.fixture
def image_encoder() -> TinyImageEncoder:
    return TinyImageEncoder()


@pytest.fixture
def tiny_goal() -> TinyGoal:
    return TinyGoal()


def make_clip(seed: int, length: int = 20) -> Tensor:
    """(T, 64, 64, 3) uint8: a red square that moves to the right at one height, two pixels a frame."""
    height = int(torch.randint(4, 50, (), generator=torch.Generator().manual_seed(seed)))
    frames = torch.full((length, 64, 64, 3), 60, dtype=torch.uint8)
    for step, frame in enumerate(frames):
        frame[height : height + 10, 2 * step : 2 * step + 10] = torch.tensor([230, 40, 40], dtype=torch.uint8)
    return frames


@pytest.fixture(scope="session")
def expert_clip() -> Callable[..., Tensor]:
    return make_clip


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six such clips with captions."""
    folder = tmp_path_factory.mktemp("demonstrations")
    for seed in range(6):
        write_video(folder / f"{seed}.mp4", make_clip(seed), 20.0)
        (folder / f"{seed}.txt").write_text("move the square to the right")
    return folder
