"""The frame level: a forward-backward representation of the agent's experience, scored at one goal frame."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from genreward_fast.captured import Captured
from genreward_fast.errors import UserError
from genreward_fast.kernels.fb_score import FoldedScore, fb_score, fold
from genreward_fast.kernels.precision import tf32_products
from genreward_fast.rewards.config import FBConfig
from genreward_fast.rewards.fb_losses import actor_loss, orthonormality_loss, successor_loss
from genreward_fast.rewards.fb_moments import representation_loss
from genreward_fast.rewards.fb_networks import ActorNet, BackwardNet, ForwardNet, scaled_to_sphere
from genreward_fast.rewards.feature_norm import FeatureNorm
from genreward_fast.rewards.weight_average import update_average
from genreward_fast.types import Batch

# Of the noise on π_z's next action, as in TD3 (Fujimoto et al. 2018): without it F is sharpened on single actions.
ACTOR_NOISE, ACTOR_NOISE_LIMIT = 0.2, 0.3


class ForwardBackward(nn.Module):
    """Learns F_k(s, a, z)·B(s′) ≈ Σ_t γᵗ P(s_{t+1} = s′ | s, a) / ρ(s′), and scores (s, a) by it at a goal.

    ρ is the replay's distribution of states, which enter as features ψ(s) of one frozen encoder. The actions after a
    are the replay's (a′ is the next row's), so the measure is that of the behaviour that filled it; or with
    `next_action` "policy" those of an actor π_z that learns to reach what z stands for.

    Each update's noise stays in the weights: scores are computed with an average of them over the updates.

    After Touati & Ollivier (2021). Random draws come from a generator of its own; `update` never waits for the device.
    On CUDA it is one CUDA graph for each batch size (`Captured`), with the networks' products in TF32, and without the
    matrices over all pairs of rows where the heads are averaged (`fb_moments`).

    Attributes:
        goal: (D,) float32, ψ(g).
        mean, deviation: 0-d, of the raw score over the rows that `freeze` was given; 0 and 1 before.
        forward_average, backward_average: F and B with averaged weights (`weight_average`), which scores come from.
        updates: 0-d float32, how many the average is over.
        frozen: whether learning is over.
        actor: π(s, z), or None where the next action is the replay's.
    """

    goal: Tensor
    mean: Tensor
    deviation: Tensor
    updates: Tensor

    def __init__(
        self,
        config: FBConfig,
        goal: Tensor,
        action_size: int,
        device: torch.device | str,
        seed: int = 0,
        capture: bool = True,
    ):
        """
        Args:
            config: hyperparameters.
            goal: (D,), ψ(g).
            action_size: A.
            device: where everything lives.
            seed: of the weights and of the draws.
            capture: on CUDA, whether updates run as CUDA graphs.
        """
        super().__init__()
        self.config = config
        self.action_size = action_size
        self.feature_dim = goal.shape[-1]
        sizes = {"feature_dim": self.feature_dim, "z_dim": config.z_dim, "hidden": config.hidden}
        weights = torch.Generator().manual_seed(seed)  # on the CPU: the same weights on every device
        self.forward_net = ForwardNet(action_size=action_size, heads=config.heads, generator=weights, **sizes)
        self.backward_net = BackwardNet(generator=weights, **sizes)
        self.actor: ActorNet | None = None
        if config.next_action == "policy":
            self.actor = ActorNet(action_size=action_size, generator=weights, **sizes)
        self.feature_norm = FeatureNorm(self.feature_dim) if config.standardise_features else None
        self.forward_target = copy.deepcopy(self.forward_net).requires_grad_(False)
        self.backward_target = copy.deepcopy(self.backward_net).requires_grad_(False)
        self.forward_average = copy.deepcopy(self.forward_net).requires_grad_(False)
        self.backward_average = copy.deepcopy(self.backward_net).requires_grad_(False)
        self.register_buffer("updates", torch.zeros(()))
        self.register_buffer("goal", goal.detach().float().reshape(-1).clone())
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))
        self.to(device)
        self.frozen = False
        self.generator = torch.Generator(device=self.goal.device).manual_seed(seed)
        self._online: list[Tensor] = [*self.forward_net.parameters(), *self.backward_net.parameters()]
        self._target: list[Tensor] = [*self.forward_target.parameters(), *self.backward_target.parameters()]
        self._average: list[Tensor] = [*self.forward_average.parameters(), *self.backward_average.parameters()]
        self._actor: list[Tensor] = [] if self.actor is None else list(self.actor.parameters())
        # On CUDA the step counter lives on the device, so that an update can be captured in a CUDA graph.
        cuda = self.goal.is_cuda
        self._optimizer = torch.optim.Adam([*self._online, *self._actor], lr=config.lr, fused=cuda, capturable=cuda)
        self._metric_names: list[str] = []
        self._captured = Captured(self._learn, self.generator) if cuda and capture else None
        self._folded: FoldedScore | None = None
        self.register_load_state_dict_pre_hook(_without_averages)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of learning on pairs of consecutive rows.

        Args:
            batch: T = 2; row 0 is (s, a), row 1 is (s′, a′). Pairs whose second row begins an episode are left out.

        Returns:
            0-d metrics on the device, without gradient.
        """
        if self.frozen:
            raise RuntimeError("a frozen forward-backward representation does not learn")
        inputs = self._pairs(batch)
        (values,) = self._learn(*inputs) if self._captured is None else self._captured(*inputs)
        self._folded = None
        return dict(zip(self._metric_names, values.unbind()))

    def _learn(self, feature: Tensor, action: Tensor, is_first: Tensor, is_terminal: Tensor) -> tuple[Tensor]:
        """All of an update, from (n, 2, ...) rows on the device; the metrics in one tensor."""
        feature, action = feature.float(), action.float()
        if self.feature_norm is not None:
            self.feature_norm.observe(feature[:, 0])
            feature = self.feature_norm(feature)
        weight = (~is_first[:, 1]).float()
        discount = self.config.gamma * (~is_terminal[:, 1]).float()
        with tf32_products() if self.goal.is_cuda else nullcontext():
            metrics = self._take_gradients(feature, action, weight, discount)
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._target, self._online, self.config.tau)
            self.updates.add_(1)
            update_average(self._average, self._online, self.updates, self.config.averaging)
        self._metric_names = list(metrics)
        return (torch.stack(list(metrics.values())),)

    def _take_gradients(self, feature: Tensor, action: Tensor, weight: Tensor, discount: Tensor) -> dict[str, Tensor]:
        """The gradient of each network's loss, left in its parameters; metrics without gradient."""
        with torch.no_grad():
            z = self.sample_z(feature[:, 1])
            next_action = action[:, 1] if self.actor is None else self._noisy(self.actor(feature[:, 1], z))
            target_forward = self.forward_target(feature[:, 1], next_action, z)
            target_backward = self.backward_target(feature[:, 1])
        forward = self.forward_net(feature[:, 0], action[:, 0], z)
        backward = self.backward_net(feature[:, 1])
        loss, metrics = self._loss(forward, backward, target_forward, target_backward, discount, weight)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.actor is not None:
            policy_forward = self.forward_net(feature[:, 0], self.actor(feature[:, 0], z), z)
            policy_loss, actor_metrics = actor_loss(policy_forward, z, self.config.reduce)
            policy_loss.backward(inputs=self._actor)
            metrics |= actor_metrics
        return {"fb/loss": loss.detach(), **metrics}

    def _loss(
        self,
        forward: Tensor,
        backward: Tensor,
        target_forward: Tensor,
        target_backward: Tensor,
        discount: Tensor,
        weight: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = (forward, backward, target_forward, target_backward, discount)
        if forward.is_cuda and self.config.reduce == "mean":
            return representation_loss(*outputs, weight, self.config.ortho)
        loss, metrics = successor_loss(*outputs, self.config.reduce, weight)
        ortho_loss, ortho_metrics = orthonormality_loss(backward)
        return loss + self.config.ortho * ortho_loss, metrics | ortho_metrics

    def _forget_updates(self) -> None:
        """Frees what the last updates have left in memory: gradients and recorded graphs."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._captured is not None:
            self._captured.forget()

    def sample_z(self, frames: Tensor) -> Tensor:
        """Goal vectors for n rows: (n, D) to (n, d) of norm √d, each with probability `mix` B of a frame.

        Features are given as the networks see them (`seen`). The frames are the given ones in another order, a share
        `goal_mix` of them replaced by the goal.
        """
        rows, device = frames.shape[0], frames.device
        gaussian = torch.randn(rows, self.config.z_dim, generator=self.generator, device=device)
        order = torch.randperm(rows, generator=self.generator, device=device)
        draw = torch.rand(rows, 2, generator=self.generator, device=device)
        shown = torch.where(draw[:, :1] < self.config.goal_mix, self.seen(self.goal), frames[order])
        return torch.where(draw[:, 1:] < self.config.mix, self.backward_net(shown), scaled_to_sphere(gaussian))

    def seen(self, feature: Tensor) -> Tensor:
        """What the networks see of features (..., D): the same, or standardised (`FBConfig.standardise_features`)."""
        return feature if self.feature_norm is None else self.feature_norm(feature)

    def _noisy(self, action: Tensor) -> Tensor:
        """Actions with clipped Gaussian noise, within [-1, 1]."""
        noise = torch.randn(action.shape, generator=self.generator, device=action.device) * ACTOR_NOISE
        return (action + noise.clamp(-ACTOR_NOISE_LIMIT, ACTOR_NOISE_LIMIT)).clamp(-1, 1)

    @torch.no_grad()
    def score(self, feature: Tensor, action: Tensor) -> Tensor:
        """Raw r_FB = reduce_k F_k(s, a, z_g)·B(g) with z_g = B(g), averaged weights: (M, D), (M, A) to (M,) float32."""
        if self._folded is None:
            z = self.backward_average(self.seen(self.goal))
            self._folded = fold(self.forward_average, z, z)
        return fb_score(self.seen(feature.float()), action.float(), self._folded, reduce=self.config.reduce)

    def standardised(self, raw: Tensor) -> Tensor:
        """Raw scores to mean 0 and deviation 1 over the rows that `freeze` was given."""
        return (raw - self.mean) / self.deviation

    @torch.no_grad()
    def freeze(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Ends learning; measures mean and deviation of the raw score over all rows of `batches` with an action.

        Raises:
            UserError: there is no such row.
        """
        scores = []
        for batch in batches:
            feature, action, _, _ = self._pairs(batch)
            taken = ~batch.is_last.to(self.goal.device)
            scores.append(self.score(feature[taken], action[taken]))
        if sum(len(score) for score in scores) == 0:
            raise UserError("the FB reward cannot be frozen without experience: raise --fb-steps above the prefill")
        values = torch.cat(scores).double()
        mean = values.mean()
        # Scores that are all alike stay near 0 instead of being blown up to noise.
        deviation = values.std(correction=0).clamp(min=1e-6 * (1 + mean.abs()))
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        self.frozen = True
        self.requires_grad_(False)
        self._forget_updates()
        return {"fb/raw_mean": self.mean.clone(), "fb/raw_deviation": self.deviation.clone()}

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` holds besides parameters and buffers."""
        return {
            "optimizer": self._optimizer.state_dict()["state"],
            "generator": self.generator.get_state(),
            "frozen": self.frozen,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._forget_updates()  # the optimizer's state becomes other tensors
        # The groups hold this device's settings, not those of the device that the state was saved on.
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        saved = state["generator"].cpu()
        if saved.shape == self.generator.get_state().shape:  # a GPU's random state means nothing to a CPU
            self.generator.set_state(saved)
        self.frozen = state["frozen"]
        self.requires_grad_(False)
        if not self.frozen:
            self.forward_net.requires_grad_(True)
            self.backward_net.requires_grad_(True)
            if self.actor is not None:
                self.actor.requires_grad_(True)
        self._folded = None

    def _pairs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features, actions and flags of a batch on this module's device."""
        if batch.feature is None or batch.feature.shape[1:] != (2, self.feature_dim):
            shape = None if batch.feature is None else tuple(batch.feature.shape)
            raise ValueError(f"FB learns from features (B, 2, {self.feature_dim}), not {shape}")
        device = self.goal.device
        return (
            batch.feature.to(device),
            batch.action.to(device),
            batch.is_first.to(device),
            batch.is_terminal.to(device),
        )


def _without_averages(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """A state from before weights were averaged scores with those that it has, and averages from there on."""
    if f"{prefix}updates" in state:
        return
    state[f"{prefix}updates"] = torch.zeros(())
    for name in ("forward", "backward"):
        online = f"{prefix}{name}_net."
        for key in [key for key in state if key.startswith(online)]:
            state[f"{prefix}{name}_average.{key.removeprefix(online)}"] = state[key]
