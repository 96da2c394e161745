"""The few records that travel between rooms. Every field states its shape and dtype.

Letters: B windows or sequences, T steps, K clip frames, N environments, H and W pixels, A action size, D feature size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class FrameSpec:
    """Which pixels a reward must be given, so that environments render nothing else.

    Steps count from 0 at the first row of a window; row t holds the frame of s_t and the action a_t.

    Attributes:
        window: rows in a window; 0 when the reward looks at no frames at all.
        interval: rows between two rewards; a window ends every `interval` rows of an episode.
        feature_size: side in pixels of the square frame that `RewardModel.features` is given on every step; 0 for none.
        feature_dim: length D of the vector that `RewardModel.features` makes of one frame; 0 for none.
        clip_size: side in pixels of the square frames that make up a window's clip; 0 for none.
        clip_steps: the steps of the window, ascending, whose frames make up its clip (K of them).
    """

    window: int = 0
    interval: int = 0
    feature_size: int = 0
    feature_dim: int = 0
    clip_size: int = 0
    clip_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.window and self.interval < 1:
            raise ValueError(f"interval must be at least 1 when there is a window, not {self.interval}")
        if any(not 0 <= step < self.window for step in self.clip_steps):
            raise ValueError(f"clip_steps must lie in [0, {self.window}), not {self.clip_steps}")
        if list(self.clip_steps) != sorted(set(self.clip_steps)):
            raise ValueError(f"clip_steps must be ascending and distinct, not {self.clip_steps}")

    def closes_at(self, rows: int) -> bool:
        """Whether a reward is due when an episode has `rows` complete rows (s_t, a_t)."""
        return self.window > 0 and rows >= self.window and (rows - self.window) % self.interval == 0

    def clip_frame_at(self, row: int) -> bool:
        """Whether the frame of `row` (counted from the episode's start) belongs to the clip of any window."""
        # The windows that contain this row start at k * interval for every k with 0 <= row - start < window.
        first = max(0, -(-(row - self.window + 1) // self.interval)) if self.window else 0
        starts = range(first * self.interval, row + 1, self.interval) if self.window else ()
        return any(row - start in self.clip_steps for start in starts)

    def sizes_at(self, row: int) -> tuple[int, ...]:
        """Sides, in pixels, of the frames that this reward needs of `row`."""
        sizes = {self.feature_size} if self.feature_size else set()
        if self.clip_size and self.clip_frame_at(row):
            sizes.add(self.clip_size)
        return tuple(sorted(sizes))


@dataclass(frozen=True)
class Window:
    """The rows (s_t, a_t), t = 0..T-1, of B windows that have just closed.

    Attributes:
        clip: (B, K, H, W, 3) uint8, the frames of `FrameSpec.clip_steps`; None if the reward takes no clip.
        features: (B, T, D) float, ψ(s_t); None if the reward takes no features.
        action: (B, T, A) float32 in [-1, 1], a_t.
        env_reward: (B, T) float32, what the environment paid for (s_t, a_t).
        fresh: how many of the last rows have had no reward yet: T at an episode's first window, then
            min(`interval`, T).
    """

    clip: Tensor | None
    features: Tensor | None
    action: Tensor
    env_reward: Tensor
    fresh: int

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.action.shape[0], self.action.shape[1]


@dataclass(frozen=True)
class Batch:
    """Sequences of consecutive rows out of the replay.

    Row t holds what arrived together (frame, reward, flags) and the action then taken. So `reward[:, t]` is the
    reward of arriving at row t, that is of (s_{t-1}, a_{t-1}).

    Attributes:
        image: (B, T, 64, 64, 3) uint8; None in a batch drawn for a reward that learns from features.
        action: (B, T, A) float32 in [-1, 1].
        reward: (B, T) float32, environment plus generated reward.
        is_first, is_last, is_terminal: (B, T) bool.
        feature: (B, T, D) float; None if nothing is stored.
        deter: (B, T, deter) float, stoch: (B, T, stoch) uint8 class indices: the latents last written for each row;
            None in a batch drawn for a reward.
        index: (B, T) int64 positions in the replay, for writing latents back.
    """

    action: Tensor
    reward: Tensor
    is_first: Tensor
    is_last: Tensor
    is_terminal: Tensor
    index: Tensor
    image: Tensor | None = None
    feature: Tensor | None = None
    deter: Tensor | None = None
    stoch: Tensor | None = None


@dataclass(frozen=True)
class Latents:
    """The recurrent state of the agent's world model for each of (...) rows.

    Attributes:
        deter: (..., deter) float.
        stoch: (..., stoch) uint8 class indices.
    """

    deter: Tensor
    stoch: Tensor


@dataclass(frozen=True)
class EnvStep:
    """What N environments return for one tick, on the host.

    Attributes:
        frames: side in pixels -> (N, side, side, 3) uint8, upright RGB; only the sizes that were asked for.
        reward: (N,) float32, the dense reward of arriving here; 0 in a reset row.
        success: (N,) bool, whether the task counted as solved on arriving here.
        is_first, is_last, is_terminal: (N,) bool.
        discarded: (N,) bool, true where a worker died, was restarted, and this row is the first of a new episode:
            the rows of the episode that was open must be dropped.
        row: (N,) int64, position in the episode, 0 where is_first.
    """

    frames: dict[int, Tensor] = field(repr=False)
    reward: Tensor
    success: Tensor
    is_first: Tensor
    is_last: Tensor
    is_terminal: Tensor
    discarded: Tensor
    row: Tensor
