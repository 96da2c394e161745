"""DreamerV3 out of TorchRL's parts (github.com/pytorch/rl), as a contestant.

Its own recipe reads vectors. For images the same parts are put together with its `ObsEncoder` and `ObsDecoder`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from genreward_fast.agent import SIZES
from genreward_fast.bench.contestant import ACTIONS, Contestant, Spec, Unavailable
from genreward_fast.bench.peers import add_checkout, require

BINS = 255


def build(spec: Spec) -> Contestant:
    if spec.checkout is not None:
        add_checkout(spec.checkout, "torchrl/objectives/dreamer_v3.py")
    warnings.filterwarnings("ignore")
    require("tensordict", "torchrl")
    import tensordict
    import torchrl

    try:
        parts = _Parts(spec)
    except (ImportError, TypeError) as error:
        raise Unavailable(
            f"torchrl {torchrl.__version__} with tensordict {tensordict.__version__} does not fit: {error}"
        ) from None
    return Contestant(
        update=parts.update,
        actor=parts.actor,
        dtype="float32",
        parameters=sum(p.numel() for group in parts.groups for p in group),
        notes=["eager, Dreamer v1's convolutions for the images, no replay value loss"],
    )


class _Parts:
    """Networks, losses and optimisers of one agent, and a batch."""

    def __init__(self, spec: Spec) -> None:
        from tensordict import TensorDict
        from tensordict.nn import (
            InteractionType,
            ProbabilisticTensorDictModule,
            ProbabilisticTensorDictSequential,
            TensorDictModule,
            TensorDictSequential,
        )
        from torchrl.envs.model_based.dreamer import DreamerEnv
        from torchrl.modules import DreamerV3MLP, ObsDecoder, ObsEncoder, SymExpTwoHot, WorldModelWrapper
        from torchrl.modules.distributions.continuous import TanhNormal
        from torchrl.modules.models.dreamer_v3 import RSSMPosteriorV3, RSSMPriorV3, RSSMRolloutV3
        from torchrl.objectives import DreamerV3ActorLoss, DreamerV3ModelLoss, DreamerV3ValueLoss
        from torchrl.objectives.utils import SoftUpdate, ValueEstimators

        self.device = torch.device(spec.device)
        self.TensorDict = TensorDict
        size = SIZES[spec.size]
        self.state, self.belief = size.stoch * size.classes, size.deter
        width = self.state + self.belief
        channels = 2 * size.depth
        embedding = 8 * channels * 4  # 64 x 64 images leave its four convolutions as 2 x 2 maps
        categoricals = {"num_categoricals": size.stoch, "num_classes": size.classes, "unimix": 0.01}

        def head(outputs: int, depth: int, outscale: float = 1.0) -> Any:
            return DreamerV3MLP(width, outputs, depth=depth, num_cells=size.units, outscale=outscale)

        following = [("next", "state"), ("next", "belief")]
        self.encoder = ObsEncoder(channels=channels, in_channels=3)
        self.prior = RSSMPriorV3(
            action_shape=torch.Size([ACTIONS]),
            hidden_dim=size.hidden,
            rnn_hidden_dim=size.deter,
            action_dim=ACTIONS,
            recurrent_model="block_gru",
            num_blocks=size.blocks,
            num_layers=1,
            prior_num_layers=2,
            **categoricals,
        )
        self.posterior = RSSMPosteriorV3(
            hidden_dim=size.hidden,
            rnn_hidden_dim=size.deter,
            obs_embed_dim=embedding,
            use_rms_norm=True,
            num_layers=1,
            **categoricals,
        )
        decoder = ObsDecoder(channels=channels, latent_dim=width)
        reward, continuation, decode = head(BINS, 1, 0.0), head(1, 1), SymExpTwoHot(BINS)
        world_model = TensorDictSequential(
            TensorDictModule(self.encoder, in_keys=[("next", "pixels")], out_keys=[("next", "encoded_latents")]),
            RSSMRolloutV3(
                TensorDictModule(
                    self.prior, in_keys=["state", "belief", "action"], out_keys=[("next", "prior_logits"), *following]
                ),
                TensorDictModule(
                    self.posterior,
                    in_keys=[("next", "belief"), ("next", "encoded_latents")],
                    out_keys=[("next", "posterior_logits"), ("next", "state")],
                ),
            ),
            TensorDictModule(decoder, in_keys=following, out_keys=[("next", "reco_pixels")]),
            TensorDictModule(reward, in_keys=following, out_keys=[("next", "reward_logits")]),
            TensorDictModule(decode, in_keys=[("next", "reward_logits")], out_keys=[("next", "reward")]),
            TensorDictModule(continuation, in_keys=following, out_keys=[("next", "continue_pred")]),
        ).to(self.device)
        now = ["state", "belief"]
        imagined = WorldModelWrapper(
            TensorDictSequential(TensorDictModule(self.prior, in_keys=[*now, "action"], out_keys=["_", *now])),
            TensorDictSequential(
                TensorDictModule(reward, in_keys=now, out_keys=["reward_logits"]),
                TensorDictModule(decode, in_keys=["reward_logits"], out_keys=["reward"]),
            ),
        )
        going_on = TensorDictSequential(
            TensorDictModule(continuation, in_keys=now, out_keys=["continue_logits"]),
            TensorDictModule(nn.Sigmoid(), in_keys=["continue_logits"], out_keys=["continuation"]),
        )
        self.policy = ProbabilisticTensorDictSequential(
            TensorDictModule(_Policy(head(2 * ACTIONS, 3, 0.01)), in_keys=now, out_keys=["loc", "scale"]),
            ProbabilisticTensorDictModule(
                in_keys=["loc", "scale"],
                out_keys=["action"],
                default_interaction_type=InteractionType.RANDOM,
                distribution_class=TanhNormal,
                return_log_prob=True,
                log_prob_key="action_log_prob",
            ),
        ).to(self.device)
        value = TensorDictSequential(
            TensorDictModule(head(BINS, 3, 0.0), in_keys=now, out_keys=["state_value_logits"]),
            TensorDictModule(SymExpTwoHot(BINS), in_keys=["state_value_logits"], out_keys=["state_value"]),
        ).to(self.device)
        shapes = {"prior_shape": torch.Size([self.state]), "belief_shape": torch.Size([self.belief])}
        world = DreamerEnv(world_model=imagined, device=self.device, **shapes)
        world.set_specs_from_env(_spaces(self.state, self.belief, self.device))
        self.model_loss = DreamerV3ModelLoss(
            world_model,
            num_reward_bins=BINS,
            kl_mode="separate",
            unimix=0.01,
            lambda_continue=1.0,
            continue_target_scale=1 - 1 / 333,
        ).to(self.device)
        self.actor_loss = DreamerV3ActorLoss(
            self.policy,
            value,
            world,
            continuation_model=going_on,
            imagination_horizon=spec.imagination,
            use_reinforce=True,
            return_normalization_rate=0.01,
            return_normalization_min_scale=1.0,
        )
        self.actor_loss.make_value_estimator(ValueEstimators.TDLambda, gamma=1.0, lmbda=0.95)
        self.actor_loss.to(self.device)
        self.value_loss = DreamerV3ValueLoss(
            value,
            value_loss="two_hot",
            num_value_bins=BINS,
            actor_loss=self.actor_loss,
            slow_critic_regularization=1.0,
        ).to(self.device)
        self.slow = SoftUpdate(self.value_loss, tau=0.02)
        losses = (self.model_loss, self.policy, self.value_loss)
        self.groups = [[p for p in loss.parameters() if p.requires_grad] for loss in losses]
        self.optimizers = [torch.optim.Adam(group, lr=4e-5, eps=1e-20) for group in self.groups]
        self.batch = self._batch(spec)

    def _batch(self, spec: Spec) -> Any:
        rows, device = (spec.batch_size, spec.batch_length), self.device
        never = torch.zeros(*rows, 1, dtype=torch.bool, device=device)
        fields = {
            "state": torch.zeros(*rows, self.state, device=device),
            "belief": torch.zeros(*rows, self.belief, device=device),
            "action": torch.rand(*rows, ACTIONS, device=device) * 2 - 1,
            "is_init": never,
            "next": {
                "pixels": torch.rand(*rows, 3, 64, 64, device=device),
                "reward": torch.rand(*rows, 1, device=device),
                "done": never,
                "terminated": never,
            },
        }
        return self.TensorDict(fields, rows)

    def _step(self, number: int, loss: Tensor) -> None:
        """Gradients of one of the three losses, clipped adaptively, and its optimiser's step."""
        group, optimizer = self.groups[number], self.optimizers[number]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        with_gradient = [p for p in group if p.grad is not None]
        gradients = [p.grad for p in with_gradient]
        limits = torch._foreach_clamp_min(torch._foreach_norm([p.detach() for p in with_gradient]), 1e-3)
        ratios = torch._foreach_div(torch._foreach_norm(gradients), torch._foreach_mul(limits, 0.3))
        torch._foreach_div_(gradients, torch._foreach_clamp_min(ratios, 1.0))
        optimizer.step()

    def update(self) -> None:
        losses, seen = self.model_loss(self.batch.clone())
        self._step(0, sum(value for name, value in losses.items() if name.startswith("loss_")).squeeze())
        start = self.TensorDict(
            {
                "state": seen.get(("next", "state")).detach().reshape(-1, self.state),
                "belief": seen.get(("next", "belief")).detach().reshape(-1, self.belief),
            },
            [self.batch.numel()],
        )
        losses, imagined = self.actor_loss(start)
        self._step(1, losses["loss_actor"])
        losses, _ = self.value_loss(imagined.detach())
        self._step(2, losses["loss_value"])
        self.slow.step()

    def actor(self, count: int) -> Callable[[], Any]:
        image = torch.rand(count, 3, 64, 64, device=self.device)
        belief = torch.zeros(count, self.belief, device=self.device)

        @torch.no_grad()
        def act() -> Any:
            state = self.posterior(belief, self.encoder(image))[1]
            chosen = self.policy(self.TensorDict({"state": state, "belief": belief}, [count]))
            return self.prior(state, belief, chosen["action"])

        return act


class _Policy(nn.Module):
    """Mean and deviation in [0.1, 1] of the action."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: Tensor, belief: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = self.network(state, belief).chunk(2, -1)
        return mean, 0.9 * torch.sigmoid(deviation + 2) + 0.1


def _spaces(state: int, belief: int, device: torch.device) -> Any:
    """An environment that is nothing but its spaces."""
    from torchrl.data import Bounded, Composite, Unbounded
    from torchrl.envs.common import EnvBase

    class Spaces(EnvBase):
        def __init__(self) -> None:
            super().__init__(device=device, batch_size=torch.Size([]))
            self.observation_spec = Composite(state=Unbounded(state), belief=Unbounded(belief)).to(device)
            self.action_spec = Bounded(-1.0, 1.0, (ACTIONS,), device=device)
            self.reward_spec = Unbounded((1,), device=device)

        def _reset(self, tensordict: Any, **_: Any) -> Any:
            raise NotImplementedError

        def _step(self, tensordict: Any) -> Any:
            raise NotImplementedError

        def _set_seed(self, seed: int | None) -> None: ...

    return Spaces()
