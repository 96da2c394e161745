"""The reward as the code published with GenReward computes it, re-created from its description to be timed beside ours.

One object stands for one environment and holds its own models, as there. Its frame level is ours in what it means (same
networks, same goal vector) and theirs in how it is computed, so that both can be compared.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import DINOv3ViTModel

_MEAN, _STD = np.asarray([0.485, 0.456, 0.406], np.float32), np.asarray([0.229, 0.224, 0.225], np.float32)


class ReleasedReward:
    """Both levels for one environment: no batches, half precision on CUDA, the goal encoded anew for each reward.

    Args:
        vae: the library's autoencoder, from which the latent is sampled; copied.
        vit: DINOv3; copied.
        forward_net, backward_net: F and B of the frame level; copied.
        goal_clip: (K, H, W, 3) uint8 on the host.
        goal_frame: (H, W, 3) uint8 on the host.
        feature_size: side in pixels at which DINOv3 sees a frame.
        device: of all models; what comes in and goes out is on the host.
    """

    def __init__(
        self,
        vae: AutoencoderKLCogVideoX,
        vit: DINOv3ViTModel,
        forward_net: nn.Module,
        backward_net: nn.Module,
        goal_clip: np.ndarray,
        goal_frame: np.ndarray,
        feature_size: int,
        device: torch.device,
    ):
        self.device = device
        # CPUs have no convolutions in half precision that are worth timing.
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.vae, self.vit = (_own(model, device, self.dtype) for model in (vae, vit))
        self.forward_net, self.backward_net = (
            _own(model, device, torch.float32) for model in (forward_net, backward_net)
        )
        self.goal_clip, self.goal_frame, self.feature_size = goal_clip, goal_frame, feature_size

    @torch.no_grad()
    def feature(self, frame: np.ndarray) -> Tensor:
        """ψ of one (H, W, 3) uint8 frame, resized and normalised by Pillow and numpy: (1, D) float32."""
        side = self.feature_size
        picture = Image.fromarray(frame).resize((side, side), Image.Resampling.BILINEAR)
        pixels = (np.asarray(picture, np.float32) / 255 - _MEAN) / _STD
        inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self.device, self.dtype)
        return self.vit(pixel_values=inputs).pooler_output.float()

    @torch.no_grad()
    def video(self, clip: np.ndarray, sample: bool = True) -> float:
        """r_video of one (K, H, W, 3) uint8 clip.

        Args:
            sample: draw both latents, as the released code does, so that the reward is a random one; else their means.
        """
        ours, goal = (self._latent(frames, sample) for frames in (clip, self.goal_clip))
        return functional.cosine_similarity(ours.flatten(), goal.flatten(), dim=0).item()

    @torch.no_grad()
    def frame(self, frame: np.ndarray, action: np.ndarray) -> float:
        """Raw r_FB of one (H, W, 3) uint8 frame and (A,) action: mean over F's heads of F(s, a, B(g))·B(g)."""
        z = self.backward_net(self.feature(self.goal_frame))
        taken = torch.from_numpy(action)[None].to(self.device)
        heads = self.forward_net(self.feature(frame), taken, z)
        return sum((head * z).sum().item() for head in heads) / len(heads)

    def _latent(self, frames: np.ndarray, sample: bool) -> Tensor:
        pixels = torch.from_numpy(frames.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)[None]
        latent = self.vae.encode(pixels.to(self.device, self.dtype)).latent_dist
        return (latent.sample() if sample else latent.mode()).float()


def _own(model: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A copy of a model; `Any`, because the libraries' models give type checkers no more."""
    return nn.Module.to(copy.deepcopy(model), device, dtype).eval()
