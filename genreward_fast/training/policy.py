"""A trained policy, for use outside training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from genreward_fast.agent.agent import Agent, Carry
from genreward_fast.agent.config import IMAGE_SIZE
from genreward_fast.errors import UserError
from genreward_fast.training.checkpoint import load_checkpoint
from genreward_fast.training.device import resolve_device
from genreward_fast.training.run_folder import RunFolder
from genreward_fast.training.settings import RunConfig


def load_agent(run: str | Path, device: str = "auto") -> tuple[RunConfig, Agent]:
    """The configuration and the agent of a run folder, as its last checkpoint has it.

    Raises:
        UserError: the folder holds no run, or its files are damaged.
    """
    folder = RunFolder(Path(run))
    folder.require_run()
    config = RunConfig.load(folder.config)
    target = resolve_device(device)
    state = load_checkpoint(folder.path)
    agent = Agent(config.agent, action_size=config.env.action_size, device=target, seed=config.train.seed)
    agent.load_state_dict(state["agent"])
    return config, agent


class Policy:
    """Chooses actions from images, keeping the world model's state from call to call.

    policy = Policy.load("runs/pick-place")
    action = policy.act(image)      # call policy.reset() when a new episode starts
    """

    def __init__(self, agent: Agent):
        self.agent = agent
        self.reset()

    @classmethod
    def load(cls, run: str | Path, device: str = "auto") -> Policy:
        """Loads the last checkpoint of a run folder. Raises UserError if there is none or it is damaged."""
        return cls(load_agent(run, device)[1])

    def reset(self) -> None:
        """Forgets the past: the next image is the first of an episode."""
        self._carry: Carry | None = None

    def act(self, image: np.ndarray | torch.Tensor, mode: Literal["sample", "mean"] = "mean") -> np.ndarray:
        """The action for what is seen now.

        Args:
            image: (64, 64, 3) or (N, 64, 64, 3) uint8, upright RGB; N must stay the same until `reset`.
            mode: "mean", or "sample" as in training.

        Returns:
            (A,) or (N, A) float32 in [-1, 1].

        Raises:
            UserError: an image of another shape or dtype.
        """
        frames = torch.as_tensor(np.ascontiguousarray(image) if isinstance(image, np.ndarray) else image)
        single = frames.ndim == 3
        frames = frames[None] if single else frames
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
            raise UserError(
                f"policy.act needs (64, 64, 3) or (N, 64, 64, 3) uint8 images, not {tuple(frames.shape)} {frames.dtype}"
            )
        count, device = len(frames), self.agent.device
        first = self._carry is None
        carry = self.agent.initial(count) if self._carry is None else self._carry
        is_first = torch.full((count,), first, dtype=torch.bool, device=device)
        action, self._carry, _ = self.agent.act(frames.to(device), is_first, carry, mode=mode)
        return (action[0] if single else action).cpu().numpy()
