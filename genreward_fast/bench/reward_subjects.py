"""What the reward's benchmark times: our reward, the released code's, and frames for both."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from genreward_fast.bench.released import ReleasedReward
from genreward_fast.encoders import architectures
from genreward_fast.encoders.image import read_dino
from genreward_fast.encoders.presets import EncoderConfig, Encoders
from genreward_fast.encoders.video import read_vae
from genreward_fast.goals.goal import Goal
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.genreward import GenReward
from genreward_fast.types import Batch, Window

ACTIONS = 4


class Subjects:
    """Our reward, the released one with the same weights, and frames of noise, so that nothing depends on a task.

    Attributes:
        ours: with its frame level frozen.
        config: its settings.
        sizes: sides in pixels of the frames of features, and of clips.
        device: of everything.
        note: what every number must say about the weights.
    """

    def __init__(self, encoder_config: EncoderConfig, device: torch.device):
        self.device, self.encoder_config = device, encoder_config
        self.config = RewardConfig()
        self.sizes = (encoder_config.feature_size, encoder_config.clip_size)
        self.generator = torch.Generator().manual_seed(0)
        frames, encoders = self.config.clip_frames, Encoders(encoder_config, device)
        self.goal = Goal("noise", self.noise(frames, self.sizes[1]), frames - 1)
        self.ours = GenReward(
            self.goal,
            config=self.config,
            video_encoder=encoders.video,
            image_encoder=encoders.image,
            action_size=ACTIONS,
            device=device,
        )
        self.ours.freeze([self._pairs(256)])
        self.note = self.ours.note
        self._released: list[ReleasedReward] = []

    def noise(self, *shape: int) -> Tensor:
        """(..., S, S, 3) uint8 pictures with large and small structure; the last of `shape` is S."""
        *count, size = shape
        coarse = torch.rand(math.prod(count), 3, 8, 8, generator=self.generator)
        smooth = functional.interpolate(coarse, (size, size), mode="bilinear")
        fine = 0.1 * torch.rand(smooth.shape, generator=self.generator)
        return (230 * smooth + 230 * fine).byte().permute(0, 2, 3, 1).reshape(*count, size, size, 3).contiguous()

    def window(self, count: int) -> Window:
        """Windows as the trainer hands them over: frames, features and actions are on the device."""
        steps = self.config.window
        rows = torch.randn(count, steps, self.ours.frames.feature_dim, generator=self.generator)
        return Window(
            clip=self.noise(count, self.config.clip_frames, self.sizes[1]).to(self.device),
            features=rows.to(self.device),
            action=(torch.rand(count, steps, ACTIONS, generator=self.generator) * 2 - 1).to(self.device),
            env_reward=torch.zeros(count, steps, device=self.device),
            fresh=steps,
        )

    def released(self, count: int) -> list[ReleasedReward]:
        """One of these for each environment, with our weights."""
        fb = self.ours.frame_level
        while len(self._released) < count:
            self._released.append(
                ReleasedReward(
                    *self._models,
                    fb.forward_average,
                    fb.backward_average,
                    self.goal.clip(self.config.clip_frames, self.sizes[1]).numpy(),
                    self.goal.frame(self.sizes[1]).numpy(),
                    self.sizes[0],
                    self.device,
                )
            )
        return self._released[:count]

    @functools.cached_property
    def _models(self) -> tuple[Any, Any]:
        """The libraries' autoencoder and DINOv3, with the weights that our encoders have."""
        config = self.encoder_config
        vae, dino = config.source("vae"), config.source("dino")
        return (
            architectures.build_vae(config.preset, config.weights_seed) if vae is None else read_vae(vae),
            architectures.build_dino(config.preset, config.weights_seed) if dino is None else read_dino(dino),
        )

    def _pairs(self, count: int) -> Batch:
        never = torch.zeros(count, 2, dtype=torch.bool)
        return Batch(
            action=torch.rand(count, 2, ACTIONS, generator=self.generator) * 2 - 1,
            reward=torch.zeros(count, 2),
            is_first=never,
            is_last=never,
            is_terminal=never,
            index=torch.zeros(count, 2, dtype=torch.long),
            feature=torch.randn(count, 2, self.ours.frames.feature_dim, generator=self.generator),
        )
