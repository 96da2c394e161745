"""The loss of one update: the world model on replayed rows, actor and critic on imagined ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genreward_fast.agent.config import AgentConfig
from genreward_fast.agent.distributions import one_hot
from genreward_fast.agent.losses import actor_loss, critic_loss, imagination_weight, kl_losses
from genreward_fast.agent.model import Model
from genreward_fast.agent.returns import lambda_return
from genreward_fast.agent.rssm import Imagined, Observed, State
from genreward_fast.agent.sampling import Sampler
from genreward_fast.types import Batch


@dataclass(frozen=True)
class Objective:
    """One update's loss and what it came from; B sequences of T trained rows, N = B * T, H imagined steps.

    Attributes:
        loss: 0-d, with gradients.
        losses: each loss before its mean and its weight, without gradients: (B, T), except policy and value, which
            are (N, H), and repval, which is (B, T - 1).
        metrics: 0-d each, without gradients.
        tokens: (B, T, tokens).
        observed: posterior states of rows `context`.. of the batch.
        imagined: the imagined steps.
        imagined_reward, imagined_con: (N, H + 1), of the start and the imagined states.
        imagined_return: (N, H).
        replay_return: (B, T - 1).
    """

    loss: Tensor
    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]
    tokens: Tensor
    observed: Observed
    imagined: Imagined
    imagined_reward: Tensor
    imagined_con: Tensor
    imagined_return: Tensor
    replay_return: Tensor


def compute(model: Model, config: AgentConfig, batch: Batch, sampler: Sampler) -> Objective:
    """Computes the loss of one update; moves the return range on the way, before the loss uses it.

    Args:
        batch: `batch_length` + `context` rows with images and latents. The last context row's latents are the state
            to start from. Its reward and flags play no part, so nothing is reset at the first trained row unless that
            row starts an episode.
    """
    if batch.image is None or batch.deter is None or batch.stoch is None:
        raise ValueError("an update of the agent needs a batch with image, deter and stoch")
    k = config.context
    image, reward, last, terminal = (x[:, k:] for x in (batch.image, batch.reward, batch.is_last, batch.is_terminal))
    reward = reward.float()
    stoch = one_hot(batch.stoch[:, k - 1], config.sizes.classes, config.compute_dtype)
    start = State(batch.deter[:, k - 1].to(config.compute_dtype), stoch)
    losses: dict[str, Tensor] = {}
    metrics: dict[str, Tensor] = {}

    # World model.
    tokens = model.encoder(image)
    observed = model.rssm.observe(start, tokens, batch.action[:, k - 1 : -1], batch.is_first[:, k:], sampler)
    prior = model.rssm.prior(observed.state.deter)
    losses["dyn"], losses["rep"], entropies = kl_losses(observed.logit, prior, config.unimix, config.free_nats)
    metrics["latent/prior_entropy"], metrics["latent/posterior_entropy"] = entropies.unbind()
    losses["image"] = model.decoder.loss(observed.state.deter, observed.state.stoch, image)
    features = observed.state.features()
    losses["reward"] = model.reward(features).loss(reward)
    con_target = (~terminal).float() * (config.discount if config.continue_discount else 1.0)
    losses["con"] = model.continuation(features).loss(con_target)

    # Imagination. Neither the start nor the imagined states pass a gradient on.
    with torch.no_grad():
        states = State(observed.state.deter.detach().flatten(0, 1), observed.state.stoch.detach().flatten(0, 1))

        def policy(state: State, step: int) -> Tensor:
            normal = model.actor(state.features())
            return sampler.action(normal.mean, normal.stddev, step)

        imagined = model.rssm.imagine(states, policy, config.imagination, sampler)
        dreamed = torch.cat([states.features().unsqueeze(1), imagined.state.features()], 1)
        dreamed_reward = model.reward(dreamed).pred()
        dreamed_con = model.continuation(dreamed).prob()
        slow_value = model.slow_critic(dreamed).pred()
    value = model.critic(dreamed)
    with torch.no_grad():
        target_value = slow_value if config.slow_target else value.pred()
        discount = 1.0 if config.continue_discount else config.discount
        weight = imagination_weight(dreamed_con, discount)[:, :-1]
        no_last = torch.zeros_like(dreamed_con)
        returns = lambda_return(dreamed_reward, 1 - dreamed_con, no_last, target_value, discount, config.lam)
        model.return_range.update(returns)
        scale = model.return_range.scale()
        advantage = (returns - target_value[:, :-1]) / scale
    dreamed_policy = model.actor(dreamed[:, :-1])
    losses["policy"], entropy = actor_loss(dreamed_policy, imagined.action, advantage, weight, config.entropy)
    losses["value"] = critic_loss(value[:, :-1], returns, slow_value[:, :-1], config.slow_regularizer, weight)

    # Replay. The imagined returns of the same rows are what the replayed returns bootstrap from; the gradient of this
    # loss reaches the world model.
    rows = last.shape
    replay_return = lambda_return(reward, terminal, last, returns[:, 0].view(rows), config.discount, config.lam)
    replay_weight = (~last[:, :-1]).float()
    losses["repval"] = critic_loss(
        model.critic(features[:, :-1]),
        replay_return,
        slow_value[:, 0].view(rows)[:, :-1],
        config.slow_regularizer,
        replay_weight,
    )

    means = {name: value.mean() for name, value in losses.items()}
    loss = torch.stack([mean * getattr(config, f"scale_{name}") for name, mean in means.items()]).sum()
    metrics.update({f"loss/{name}": mean.detach() for name, mean in means.items()})
    metrics["loss/total"] = loss.detach()
    metrics.update(
        {
            "policy/entropy": entropy.detach().mean(),
            "policy/stddev": dreamed_policy.stddev.detach().mean(),
            "policy/advantage_mean": advantage.mean(),
            "policy/advantage_std": advantage.std(),
            "policy/advantage_magnitude": advantage.abs().mean(),
            "return/scale": scale.clone(),
            "return/low": model.return_range.low.clone(),
            "return/high": model.return_range.high.clone(),
            "imagined/reward": dreamed_reward.mean(),
            "imagined/con": dreamed_con.mean(),
            "imagined/return": returns.mean(),
            "imagined/value": target_value.mean(),
            "imagined/weight": weight.mean(),
            "replay/reward": reward.mean(),
            "replay/return": replay_return.mean(),
        }
    )
    return Objective(
        loss=loss,
        losses={name: value.detach() for name, value in losses.items()},
        metrics=metrics,
        tokens=tokens,
        observed=observed,
        imagined=imagined,
        imagined_reward=dreamed_reward,
        imagined_con=dreamed_con,
        imagined_return=returns,
        replay_return=replay_return,
    )
