"""A video becomes actions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.goals.frames import to_size, uniform_indices
from genreward_fast.training.unipi.inverse_dynamics import InverseDynamics, NetworkConfig

_PROPORTIONS = 0.02  # how far those of the video may be from those of the inverse dynamics' frames


def frames_and_gaps(frames: int, steps: int, max_gap: int) -> tuple[list[int], list[int]]:
    """Which frames of a video a plan goes through, and how many steps it takes from each to the next one.

    The video's first and last frames begin and end the plan; what lies between is spread evenly. A video with more
    frames than the plan has steps is thinned out to one frame a step.

    Returns:
        N + 1 indices of frames and N gaps, which add up to `steps`.

    Raises:
        UserError: the frames are further apart than `max_gap` steps.
    """
    chosen = uniform_indices(frames, min(frames, steps + 1))
    times = uniform_indices(steps + 1, len(chosen))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    if max(gaps) > max_gap:
        raise UserError(
            f"--plan-steps {steps}: {frames} frames leave gaps of up to {max(gaps)} steps, and these inverse dynamics "
            f"know {max_gap}; lower it, or fit with a larger --max-gap"
        )
    return chosen, gaps


def check_video(config: NetworkConfig, shape: Sequence[int], steps: int) -> None:
    """
    Args:
        shape: (T, H, W, ...) of the video.
        steps: over which it spans.

    Raises:
        UserError: such a video has other proportions than the frames that the inverse dynamics know, or too few frames.
    """
    frames, height, width = shape[:3]
    if abs(width / height * config.height / config.width - 1) > _PROPORTIONS:
        raise UserError(
            f"the video is {height}x{width}, but the inverse dynamics were fitted to frames of "
            f"{config.height}x{config.width}, which show another part of the picture; fit with --size of the video's "
            "proportions"
        )
    frames_and_gaps(frames, steps, config.max_gap)


def actions_of_video(dynamics: InverseDynamics, video: Tensor, steps: int) -> Tensor:
    """The actions that lead through a video.

    Between two frames that are k steps apart, the mean action over these steps is taken k times. UniPi instead has a
    second diffusion model that adds frames in between (temporal super-resolution, arXiv 2302.00111, section 3).

    Args:
        video: (T, H, W, 3) uint8, T ≥ 2.
        steps: n, over which it spans.

    Returns:
        (n, A) float32 in [-1, 1] on the CPU.

    Raises:
        UserError: see `check_video`.
    """
    config = dynamics.config
    check_video(config, video.shape, steps)
    chosen, gaps = frames_and_gaps(len(video), steps, config.max_gap)
    frames = to_size(video[chosen], config.height, config.width)
    repeats = torch.tensor(gaps)
    return dynamics.actions(frames[:-1], frames[1:], repeats).repeat_interleave(repeats, dim=0)
