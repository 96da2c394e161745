"""RoboCLIP: how much a window of experience is like a goal video or a sentence, in S3D's space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.credit import share_value
from genreward_fast.rewards.fixed import FixedReward
from genreward_fast.rewards.identity import frames_digest
from genreward_fast.types import FrameSpec, Window

if TYPE_CHECKING:  # their libraries take seconds to import
    from genreward_fast.encoders.presets import Encoders
    from genreward_fast.encoders.s3d import KineticsS3D, S3DEncoder
    from genreward_fast.encoders.s3d_network import TextVideoS3D
    from genreward_fast.goals.goal import Goal


class RoboClip(FixedReward):
    """r = ⟨S3D(goal), S3D(window)⟩ at the window's end (RoboCLIP, arXiv 2310.07899, equation 1), times a scale.

    The goal is encoded once. S3D sees every fourth frame of a window.
    """

    def __init__(
        self, goal: Goal, encoder: S3DEncoder, *, config: RewardConfig, device: torch.device | str = "cpu"
    ) -> None:
        """
        Args:
            encoder: on `device`.

        Raises:
            UserError: a window has too few frames for S3D, or the goal's text cannot be encoded.
        """
        settings = config.roboclip
        steps = tuple(range(0, config.window, settings.every))
        spec = FrameSpec(config.window, config.interval, clip_size=encoder.size, clip_steps=steps)
        identity: dict[str, Any] = {"reward": "roboclip", "S3D": encoder.fingerprint, "clip frames": len(steps)}
        self.encoder = encoder
        self.scale = config.scale
        clip = goal.clip(len(steps), encoder.size)
        try:  # also where words are the goal: S3D may not take clips of this length
            vector = encoder(clip.unsqueeze(0)).squeeze(0)
        except ValueError as error:
            raise UserError(
                f"--window {config.window}: every {settings.every}th of its steps makes a clip of {len(steps)} frames,"
                f" and {error}"
            ) from None
        if settings.goal == "text":
            vector = encoder.text(goal.text)
            identity["goal text"] = goal.text
        else:
            identity["goal clip"] = frames_digest(clip)
        self.goal_vector = vector
        super().__init__(spec, identity, config.credit, device, encoder.note)

    @torch.no_grad()
    def parts(self, window: Window) -> dict[str, Tensor]:
        """Two parts, (B, T) float32.

        "roboclip": the scaled product on the last row ("closing") or divided among the fresh rows ("spread").

        "roboclip_raw" repeats the product itself on every row.
        """
        if window.clip is None:
            raise ValueError("roboclip needs the window's clip")
        clip = window.clip.to(self.device)
        with self.encoding(clip):
            product = self.encoder(clip) @ self.goal_vector
            return {
                "roboclip": share_value(self.scale * product, window, self.credit),
                "roboclip_raw": product.unsqueeze(-1).expand(window.shape),
            }


def make_roboclip(
    config: RewardConfig, goal: Goal | None, encoders: Encoders | None, device: torch.device | str
) -> RoboClip:
    """RoboCLIP with the weights that the settings name; with random ones if the run's encoders have such, too.

    Raises:
        UserError: there is no goal, or no usable weights.
    """
    from genreward_fast.encoders.presets import RANDOM
    from genreward_fast.encoders.s3d import S3DEncoder
    from genreward_fast.encoders.s3d_weights import VOCABULARY, random_s3d, read_s3d

    if goal is None:
        raise UserError("--reward roboclip needs a goal: name its folder with --goal (genreward goal makes one)")
    settings = config.roboclip
    vocabulary, note = None, ""
    model: TextVideoS3D | KineticsS3D
    if config.weights:
        model, vocabulary = read_s3d(config.weights)
    elif encoders is not None and encoders.config.weights == "random":
        model, note = random_s3d(encoders.config.weights_seed), RANDOM
    else:
        raise UserError(
            "--reward roboclip needs the weights of S3D: name their file with --reward-weights FILE, the paper's "
            f"s3d_howto100m.pth (for goals in words with {VOCABULARY} beside it; github.com/antoine77340/S3D_HowTo100M)"
            " or torchvision's s3d-d76dad2f.pth (download.pytorch.org/models)"
        )
    encoder = S3DEncoder(model, size=settings.size, vocabulary=vocabulary, byte_pixels=settings.byte_pixels, note=note)
    return RoboClip(goal, encoder.to(device), config=config, device=device)
