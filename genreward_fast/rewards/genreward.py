"""GenReward: α·r_video + β·r_FB from one goal video."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.rewards.base import inline, total
from genreward_fast.rewards.config import Credit, RewardConfig
from genreward_fast.rewards.credit import paid_rows, share_value
from genreward_fast.rewards.fb import ForwardBackward
from genreward_fast.rewards.identity import check_identity, frames_digest
from genreward_fast.rewards.video import VideoReward
from genreward_fast.types import Batch, Window

if TYPE_CHECKING:  # their libraries take seconds to import
    from genreward_fast.encoders.image import ImageEncoder
    from genreward_fast.encoders.presets import Encoders
    from genreward_fast.encoders.video import VideoEncoder
    from genreward_fast.goals.goal import Goal


class GenReward:
    """The reward of the paper (arXiv 2512.00961), with its frame level repaired.

    `GenReward(goal, preset="paper", device="cuda")` loads the preset's encoders; a trainer that has them hands them in.

    Everything about the goal is computed once: its latent, its feature, and (once FB is frozen) the parts of F that
    depend on z alone. Windows and batches may come from any device; results are on `device`.

    Attributes:
        frames, learn_steps, frozen: see `RewardModel`.
        encoding: see `EncodesWindows`; around the video level.
        config: its settings.
        credit: which rows are paid; see `RewardConfig`.
        action_size: A, as given.
        note: what every output made with it must say about the encoders; "" if their weights are trained.
    """

    def __init__(
        self,
        goal: Goal,
        preset: str = "paper",
        *,
        config: RewardConfig | None = None,
        video_encoder: VideoEncoder | None = None,
        image_encoder: ImageEncoder | None = None,
        action_size: int = 4,
        device: torch.device | str = "cuda",
        seed: int = 0,
    ):
        """
        Args:
            goal: what to reach.
            preset: whose encoders to load; ignored for those that are given.
            config: the paper's window and this project's weights by default.
            video_encoder: needed for the video level alone.
            image_encoder: needed for the frame level alone.
            action_size: A; Meta-World's by default.
            device: where the encoders are, and where everything is computed.
            seed: of FB's weights and draws.

        Raises:
            UserError: an encoder cannot be loaded, or takes no clips of `config.clip_frames` frames.
        """
        self.config = config = config or RewardConfig()
        self.credit: Credit = config.credit
        self.action_size = action_size
        self.device = torch.device(device)
        self.encoding: Callable[..., AbstractContextManager[None]] = inline
        self._identity: dict[str, Any] = {"reward": "genreward", "action size": action_size}
        self._video: VideoReward | None = None
        self._fb: ForwardBackward | None = None
        clip_size = feature_size = feature_dim = 0
        if config.use_video:
            video_encoder = video_encoder or _load_encoders(preset, self.device).video
            clip_size = video_encoder.size
            clip = goal.clip(config.clip_frames, clip_size)
            try:
                self._video = VideoReward(video_encoder, clip.to(self.device), centred=config.video_centred)
            except ValueError as error:
                raise UserError(
                    f"--clip-frames {config.clip_frames} does not suit the video encoder: {error}"
                ) from None
            self._identity |= {"goal clip": frames_digest(clip), "video encoder": video_encoder.fingerprint}
            if config.video_centred:  # older checkpoints do not speak of it
                self._identity["video latents"] = "centred"
        if config.use_fb:
            self._image_encoder = image_encoder = image_encoder or _load_encoders(preset, self.device).image
            feature_size, feature_dim = image_encoder.size, image_encoder.dim
            frame = goal.frame(feature_size)
            feature = self.features(frame.unsqueeze(0)).squeeze(0)
            self._fb = ForwardBackward(config.fb, feature, action_size, self.device, seed)
            self._identity |= {
                "goal frame": frames_digest(frame),
                "image encoder": image_encoder.fingerprint,
                "feature size": feature_dim,
                "FB z_dim": config.fb.z_dim,
                "FB hidden": config.fb.hidden,
                "FB heads": config.fb.heads,
            }
            # Only where they differ from what older checkpoints were made with.
            if config.fb.next_action != "replay":
                self._identity["FB next action"] = config.fb.next_action
            if config.fb.standardise_features:
                self._identity["FB features"] = "standardised"
        used = [encoder for encoder in (video_encoder, image_encoder) if encoder is not None]
        self.note = next((encoder.note for encoder in used if encoder.note), "")
        self.frames = config.frame_spec(clip_size, feature_size, feature_dim)
        self.learn_steps = config.fb_steps if config.use_fb else 0
        self.frozen = self._fb is None

    @property
    def video_level(self) -> VideoReward:
        """
        Raises:
            ValueError: this reward has none.
        """
        if self._video is None:
            raise ValueError("this reward has no video level")
        return self._video

    @property
    def frame_level(self) -> ForwardBackward:
        """
        Raises:
            ValueError: this reward has none.
        """
        if self._fb is None:
            raise ValueError("this reward has no frame level")
        return self._fb

    @torch.no_grad()
    def features(self, frames: Tensor) -> Tensor:
        """ψ of single frames: (N, S, S, 3) uint8 to (N, D) float32."""
        return self._image_encoder(frames.to(self.device)).float()

    def score(self, window: Window) -> Tensor:
        """(B, T) float32: the sum of `parts`."""
        return total(self.parts(window))

    @torch.no_grad()
    def parts(self, window: Window) -> dict[str, Tensor]:
        """The levels in use, each (B, T) float32.

        "video": α·r_video on the last row (credit "closing"), or divided equally among the `window.fresh` last rows
        ("spread"). Both sum to α·r_video per window, whatever the interval; rows between windows that do not touch
        (interval > window) get nothing.

        "fb": β·(standardised r_FB) of the last row ("closing") or of each fresh row ("spread"); 0 until frozen.

        "video_raw" repeats the cosine on every row, "fb_raw" is F·B of every row before standardising.
        """
        rows, steps = window.shape
        parts: dict[str, Tensor] = {}
        if self._video is not None:
            if window.clip is None:
                raise ValueError("the video level needs the window's clip")
            clip = window.clip.to(self.device)
            with self.encoding(clip):
                cosine = self._video.score(clip)
                parts["video"] = share_value(self.config.alpha * cosine, window, self.credit)
                parts["video_raw"] = cosine.unsqueeze(-1).expand(rows, steps)
        if self._fb is not None:
            if window.features is None:
                raise ValueError("the frame level needs the window's features")
            features, action = window.features.to(self.device), window.action.to(self.device)
            raw = self._fb.score(features.flatten(0, 1), action.flatten(0, 1)).view(rows, steps)
            standardised = self._fb.standardised(raw) if self.frozen else torch.zeros_like(raw)
            parts["fb"] = self.config.beta * standardised * paid_rows(window, self.credit, self.device)
            parts["fb_raw"] = raw
        return parts

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of FB's learning on pairs of rows (T = 2); {} without FB or once it is frozen."""
        return {} if self._fb is None or self.frozen else self._fb.update(batch)

    def freeze(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Ends FB's learning; mean and deviation of its raw score over `batches` standardise all later scores.

        A second call changes nothing.

        Raises:
            UserError: `batches` holds no row.
        """
        if self._fb is None or self.frozen:
            return {}
        metrics = self._fb.freeze(batches)
        self.frozen = True
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Nested dicts of tensors, numbers and strings: what it is a reward for, and all of FB."""
        return {"identity": dict(self._identity), "fb": {} if self._fb is None else dict(self._fb.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            UserError: the state was made with another goal, encoder, action size or network; names both.
        """
        check_identity(state.get("identity", {}), self._identity)
        if self._fb is not None:
            try:
                self._fb.load_state_dict(state["fb"])
                self.frozen = self._fb.frozen
            except (KeyError, RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"the checkpoint's reward does not fit this version: {reason}") from None


def _load_encoders(preset: str, device: torch.device) -> Encoders:
    from genreward_fast.encoders.presets import EncoderConfig, shared_encoders

    return shared_encoders(EncoderConfig(preset=preset), device)
