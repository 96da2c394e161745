"""The settings of a reward, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from genreward_fast.errors import UserError
from genreward_fast.rewards.frame_model.config import DiffusionRewardConfig, ViperConfig
from genreward_fast.rewards.roboclip_config import RoboClipConfig
from genreward_fast.rewards.tadpole.config import TadpoleConfig
from genreward_fast.types import FrameSpec

Credit = Literal["closing", "spread"]
Reduce = Literal["min", "mean"]
NextAction = Literal["replay", "policy"]


@dataclass(frozen=True)
class FBConfig:
    """Hyperparameters of the forward-backward representation (Touati & Ollivier 2021; GenReward for the values).

    Attributes:
        z_dim: length d of F's and B's outputs and of the goal vector z.
        hidden: width of both layers of F and of B.
        heads: forward networks F_k.
        reduce: how the heads become one value, in the target and in the reward: their minimum or their mean.
        lr: learning rate of Adam.
        tau: share of the online parameters that the target networks take over after each update.
        gamma: discount of the successor measure.
        ortho: weight c of the orthonormality loss.
        batch: pairs of consecutive rows in one update.
        mix: share of the rows whose z is B of a frame; the others get a Gaussian direction of norm √d.
        goal_mix: share of those frames that are the goal's own, so that F is trained at the z it is scored at.
        next_action: a′ of the target. "replay" takes the next row's, as the paper does: the measure is that of the
            behaviour which filled the replay. "policy" takes that of a small actor π_z, trained beside F and B to
            reach what z stands for: the measure is that of going there.
        averaging: exponent of the average of F's and B's weights that scores are computed with: the weights after the
            i-th update count about as i to this power (`weight_average`). 0 weighs all alike; the greater it is, the
            more the last ones count.
        standardise_features: whether F and B see ψ with mean 0 and deviation 1 over the experience of the learning.
    """

    z_dim: int = 64
    hidden: int = 512
    heads: int = 2
    reduce: Reduce = "mean"
    lr: float = 1e-4
    tau: float = 0.01
    gamma: float = 0.98
    ortho: float = 1.0
    batch: int = 1024
    mix: float = 0.5
    goal_mix: float = 0.125
    next_action: NextAction = "replay"
    averaging: float = 5.0
    standardise_features: bool = False

    def __post_init__(self) -> None:
        for name, least in (("z_dim", 1), ("hidden", 1), ("heads", 1), ("batch", 2)):
            if getattr(self, name) < least:
                raise UserError(f"FB {name} must be at least {least}, not {getattr(self, name)}")
        if self.reduce not in ("min", "mean"):
            raise UserError(f"FB reduce must be min or mean, not {self.reduce!r}")
        if self.next_action not in ("replay", "policy"):
            raise UserError(f"--fb-next-action must be replay or policy, not {self.next_action!r}")
        if not 0 < self.lr < math.inf:
            raise UserError(f"FB lr must be a positive number, not {self.lr}")
        if not 0 < self.tau <= 1:
            raise UserError(f"FB tau must lie in (0, 1], not {self.tau}")
        if not 0 <= self.gamma < 1:
            raise UserError(f"FB gamma must lie in [0, 1): at 1 the successor measure has no bound; it is {self.gamma}")
        if not 0 <= self.ortho < math.inf:
            raise UserError(f"FB ortho must be a finite number >= 0, not {self.ortho}")
        if not 0 <= self.averaging < math.inf:
            raise UserError(f"FB averaging must be a finite number >= 0, not {self.averaging}")
        for name in ("mix", "goal_mix"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"FB {name} must lie in [0, 1], not {getattr(self, name)}")


@dataclass(frozen=True)
class RewardConfig:
    """Which reward is added to the environment's own, and its settings; α to `fb` are those of GenReward.

    GenReward (arXiv 2512.00961): r = α·r_video + β·r_FB.

    r_video is a cosine in [-1, 1]. r_FB is standardised (mean 0, deviation 1 over the experience it was frozen on), so
    α and β mean the same on every task. The default α and β assume that windows differ by tenths in r_video and by
    about 100 in the sum of 128 spread r_FB, which brings both levels to the order of 1; that is not measured yet.

    Attributes:
        name: which reward; see `genreward_fast.rewards.registry`.
        alpha: α, weight of the video level.
        beta: β, weight of the frame level.
        window: steps that are compared with the goal video.
        clip_frames: frames of them that the video encoder sees, evenly spaced.
        interval: steps from one window's end to the next one's.
        credit: "closing" pays both levels on a window's last row, as the paper does. "spread" pays r_FB on every row
            and divides r_video equally among the rows that no earlier window has paid.
        use_video, use_fb: False leaves a level out (ablations).
        video_centred: whether the latents' means over time are taken off before they are compared (not in the paper).
        fb_steps: environment steps during which FB learns; r_FB is 0 until then and FB is frozen afterwards.
        fb: FB's hyperparameters.
        weights: of a reward other than genreward: hub id, file, or folder (of `genreward fit`); see that reward's page.
        diffusion, viper: the settings of these rewards.
        scale: weight of roboclip and tadpole; 1 as published.
        roboclip, tadpole: settings of these rewards; tadpole's are video-tadpole's, too.
    """

    name: str = "genreward"
    alpha: float = 10.0
    beta: float = 0.01
    window: int = 128
    clip_frames: int = 16
    interval: int = 128
    credit: Credit = "spread"
    use_video: bool = True
    use_fb: bool = True
    video_centred: bool = False
    fb_steps: int = 100_000
    fb: FBConfig = field(default_factory=FBConfig)
    weights: str = ""
    diffusion: DiffusionRewardConfig = field(default_factory=DiffusionRewardConfig)
    viper: ViperConfig = field(default_factory=ViperConfig)
    scale: float = 1.0
    roboclip: RoboClipConfig = field(default_factory=RoboClipConfig)
    tadpole: TadpoleConfig = field(default_factory=TadpoleConfig)

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name} must be a finite number >= 0, not {getattr(self, name)}")
        if not 0 < self.scale < math.inf:
            raise UserError(f"--reward-scale must be a positive number, not {self.scale}")
        for name in ("window", "interval", "clip_frames", "fb_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.clip_frames > self.window:
            raise UserError(
                f"--clip-frames {self.clip_frames} is more than the {self.window} steps of a window; raise --window"
            )
        if self.credit not in ("closing", "spread"):
            raise UserError(f"--credit must be closing or spread, not {self.credit!r}")
        if self.name == "genreward" and not (self.use_video or self.use_fb):
            raise UserError("--no-video and --no-fb together leave nothing of genreward; use --reward none")

    @property
    def uses_goal(self) -> bool:
        """Whether the reward that `name` names compares anything with a goal."""
        return self.name not in ("none", "diffusion-reward", "viper")

    @property
    def rows(self) -> int:
        """Rows in a window of the reward that `name` names; an episode that is shorter is never paid."""
        windows = {"none": 0, "diffusion-reward": self.diffusion.window, "viper": self.viper.window}
        return windows.get(self.name, self.window)

    @property
    def pairs(self) -> int:
        """Pairs of rows in one update of the reward that `name` names."""
        pairs = {"diffusion-reward": self.diffusion.batch, "viper": self.viper.batch}
        return pairs.get(self.name, self.fb.batch)

    @property
    def clip_steps(self) -> tuple[int, ...]:
        """The steps of a window whose frames make up its clip: round(linspace(0, window - 1, clip_frames))."""
        return tuple(int(step) for step in np.linspace(0, self.window - 1, self.clip_frames).round())

    def frame_spec(self, clip_size: int, feature_size: int, feature_dim: int) -> FrameSpec:
        """What must be rendered for this reward with encoders of these sizes; a level left out needs no frames."""
        return FrameSpec(
            window=self.window,
            interval=self.interval,
            feature_size=feature_size if self.use_fb else 0,
            feature_dim=feature_dim if self.use_fb else 0,
            clip_size=clip_size if self.use_video else 0,
            clip_steps=self.clip_steps if self.use_video else (),
        )
