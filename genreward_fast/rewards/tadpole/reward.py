"""TADPoLe and Video-TADPoLe: how much better a diffusion model denoises what the agent does when it knows the text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.credit import share_rows
from genreward_fast.rewards.fixed import FixedReward
from genreward_fast.rewards.tadpole.draws import NumberedDraws
from genreward_fast.rewards.tadpole.formula import reward_of, terms
from genreward_fast.types import FrameSpec, Window

if TYPE_CHECKING:  # its libraries take seconds to import
    from genreward_fast.rewards.tadpole.model import TextDiffusion

TERMS = 2


class _DenoisingReward(FixedReward):
    """What both have in common: the model, numbered draws of noise, and the parts."""

    def __init__(
        self, model: TextDiffusion, text: str, config: RewardConfig, spec: FrameSpec, seed: int, device: torch.device
    ) -> None:
        settings = config.tadpole
        levels = len(model.alphas)
        if settings.noise_upto > levels:
            raise UserError(f"TADPoLe noise levels up to {settings.noise_upto}: the model's schedule has {levels}")
        identity: dict[str, Any] = {
            "reward": config.name,
            "goal text": text,
            "diffusion model": model.fingerprint,
            "noise levels": f"[{settings.noise_from}, {settings.noise_upto})",
            "weights of the terms": f"{settings.align}, {settings.reconstruct}",
        }
        super().__init__(spec, identity, config.credit, device, model.note)
        self.model, self.scale, self.settings = model, config.scale, settings
        self._name = config.name.replace("-", "_")
        self._draws = NumberedDraws(seed, (settings.noise_from, settings.noise_upto), self.device)

    def _parts(self, values: Tensor, window: Window) -> dict[str, Tensor]:
        """Of (B, T, 2) terms."""
        rewards = reward_of(values, self.settings)
        return {
            self._name: share_rows(self.scale * rewards, window, self.credit),
            f"{self._name}_raw": rewards,
            "alignment_raw": values[..., 0],
            "reconstruction_raw": values[..., 1],
        }

    def state_dict(self) -> dict[str, Any]:
        """What it is a reward for, and how many noises were drawn."""
        return super().state_dict() | {"drawn": self._draws.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            UserError: as of any `FixedReward`.
        """
        super().load_state_dict(state)
        self._draws.drawn = state["drawn"]


class Tadpole(_DenoisingReward):
    """r(s_t) = symlog(w₁‖ε_c − ε_u‖²) + symlog(w₂(‖ε_u − ε‖² − ‖ε_c − ε‖²)) of the frame of s_t, times a scale.

    Each frame is denoised once, when it arrives, all environments in one call; its two terms are its feature.
    """

    def __init__(
        self,
        model: TextDiffusion,
        text: str,
        *,
        config: RewardConfig,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            model: of pictures, for `text`, on `device`.
            seed: of the noise.

        Raises:
            UserError: the model's schedule has fewer noise levels.
        """
        spec = FrameSpec(config.window, config.interval, feature_size=model.size, feature_dim=TERMS)
        super().__init__(model, text, config, spec, seed, torch.device(device))

    @torch.no_grad()
    def features(self, frames: Tensor) -> Tensor:
        """(N, S, S, 3) uint8 to (N, 2) float32: alignment and reconstruction of each frame, at fresh noise."""
        levels, noise = self._draws.next(len(frames), self.model.latent_shape)
        values = []
        for part, level, drawn in zip(*(x.split(self.settings.batch) for x in (frames, levels, noise))):
            latents = self.model.latents(part.to(self.device))
            values.append(terms(*self.model.predict(latents, drawn, level), drawn))
        return torch.cat(values)

    @torch.no_grad()
    def parts(self, window: Window) -> dict[str, Tensor]:
        """Four parts, (B, T) float32.

        "tadpole": each fresh row's reward ("spread"), or their sum on the last row ("closing").

        "tadpole_raw", "alignment_raw" and "reconstruction_raw" are unscaled, of every row.
        """
        if window.features is None:
            raise ValueError("tadpole needs the window's features")
        return self._parts(window.features.to(self.device), window)


class VideoTadpole(_DenoisingReward):
    """The same of the frames of a clip, denoised together at one noise level by a model of clips.

    A window's clip gives a reward for each of its frames; a row between two of them gets that of the nearer one.
    """

    def __init__(
        self,
        model: TextDiffusion,
        text: str,
        *,
        config: RewardConfig,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            model: of clips, for `text`, on `device`.
            seed: of the noise.

        Raises:
            UserError: the model takes no clips of so many frames, or its schedule has fewer noise levels.
        """
        if config.clip_frames > model.max_frames:
            raise UserError(
                f"--clip-frames {config.clip_frames}: the motion modules take at most {model.max_frames} frames"
            )
        steps = config.clip_steps
        spec = FrameSpec(config.window, config.interval, clip_size=model.size, clip_steps=steps)
        super().__init__(model, text, config, spec, seed, torch.device(device))
        self._identity["clip steps"] = ", ".join(map(str, steps))
        rows = torch.arange(config.window)[:, None]
        self._nearest = (rows - torch.tensor(steps)).abs().argmin(dim=1).to(self.device)

    @torch.no_grad()
    def parts(self, window: Window) -> dict[str, Tensor]:
        """Four parts, (B, T) float32.

        "video_tadpole": each fresh row's reward ("spread"), or their sum on the last row ("closing").

        "video_tadpole_raw", "alignment_raw" and "reconstruction_raw" are unscaled, of every row.
        """
        if window.clip is None:
            raise ValueError("video-tadpole needs the window's clip")
        clips = window.clip.to(self.device)
        with self.encoding(clips):
            values = torch.stack([self._values(clip) for clip in clips])
            return self._parts(values[:, self._nearest], window)

    def _values(self, clip: Tensor) -> Tensor:
        """(K, S, S, 3) uint8 to (K, 2)."""
        level, noise = self._draws.next(1, (len(clip), *self.model.latent_shape))
        latents = self.model.latents(clip).unsqueeze(0)
        return terms(*self.model.predict(latents, noise, level), noise).squeeze(0)
