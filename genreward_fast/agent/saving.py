"""Saving and restoring an agent."""

from __future__ import annotations

from typing import Any

import torch

from genreward_fast.agent.config import AgentConfig
from genreward_fast.agent.model import Model
from genreward_fast.agent.optimizer import LaProp
from genreward_fast.agent.parallel import Parallel
from genreward_fast.agent.sampling import RandomSampler
from genreward_fast.errors import UserError

_POLICY_PARTS = ("encoder.", "rssm.", "actor.")


class Saving:
    """The part of `Agent` that carries its state to checkpoints and back."""

    config: AgentConfig
    action_size: int
    device: torch.device
    model: Model
    optimizer: LaProp
    sampler: RandomSampler
    parallel: Parallel | None
    _seed: int

    def _share_state(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs, as nested dicts of tensors and plain values.

        The tensors are the live ones: copy or save them before the next update. `torch.load(weights_only=True)` reads
        them back.
        """
        return {
            "agent": self._identity(),
            "model": {name: tensor.detach() for name, tensor in self.model.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "generator": self.sampler.generator.get_state(),
            "generator_device": self.device.type,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a `state_dict`. The resume is exact on the kind of device that it was saved on; on another one the
        random draws go on from this agent's own seed, since generators of different kinds share no state. Of several
        processes only the one that saved the state, the first, draws on as it would have.

        Raises:
            UserError: the state is that of an agent with other sizes or another number of actions, or is incomplete.
        """
        self._check_identity(state)
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if state["generator_device"] == self.device.type:
                self.sampler.generator.set_state(state["generator"].cpu())
            if self.parallel is not None:
                if self.parallel.rank:  # the saved generator is the first process's
                    self.sampler.generator.manual_seed(self._seed + self.optimizer.step_count)
                self._share_state()
        except (KeyError, RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the checkpoint's agent is damaged or from another version ({reason})") from None

    def policy_state(self) -> dict[str, Any]:
        """What `act` needs and no more, in the form of `state_dict`."""
        model = self.model.state_dict()
        return {
            "agent": self._identity(),
            # Copies: saving a view saves the whole buffer that it lies in.
            "model": {name: tensor.clone() for name, tensor in model.items() if name.startswith(_POLICY_PARTS)},
        }

    def load_policy_state(self, state: dict[str, Any]) -> None:
        """Takes over what `act` needs from a `policy_state` or a whole `state_dict`; the rest stays as it is.

        Raises:
            UserError: the state is that of an agent with other sizes or another number of actions.
        """
        self._check_identity(state)
        model = {name: tensor for name, tensor in state["model"].items() if name.startswith(_POLICY_PARTS)}
        wanted = {name for name in self.model.state_dict() if name.startswith(_POLICY_PARTS)}
        if model.keys() != wanted:
            missing = sorted(wanted ^ model.keys())
            raise UserError(f"the checkpoint's policy does not fit this version of the agent: {missing[0]} differs")
        self.model.load_state_dict(model, strict=False)

    def _identity(self) -> dict[str, Any]:
        return {**self.config.describe(), "bins": self.config.bins, "action_size": self.action_size}

    def _check_identity(self, state: dict[str, Any]) -> None:
        if not isinstance(state, dict) or not isinstance(state.get("agent"), dict) or "model" not in state:
            raise UserError("the checkpoint holds no agent; give one that an agent's training has written")
        saved, own = dict(state["agent"]), self._identity()
        saved_size, own_size = saved.pop("size", "unnamed"), own.pop("size")
        if saved != own:
            differing = sorted(k for k in own.keys() | saved.keys() if own.get(k) != saved.get(k))
            details = ", ".join(f"{k} {saved.get(k)} instead of {own.get(k)}" for k in differing)
            raise UserError(
                f"the checkpoint holds an agent of size {saved_size} with {saved.get('action_size')} actions, but this "
                f"one has size {own_size} with {self.action_size} actions ({details}); choose the same size and task"
            )
