"""The loss of one update: the world model on replayed rows, actor and critic on imagined ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genreward_fast.agent.beside import beside, join, resumed
from genreward_fast.agent.config import AgentConfig
from genreward_fast.agent.distributions import one_hot
from genreward_fast.agent.gradients import Gradients, Pairs
from genreward_fast.agent.heads import outputs
from genreward_fast.agent.imagination import imagine
from genreward_fast.agent.losses import critic_loss
from genreward_fast.agent.model import Model
from genreward_fast.agent.rssm import Imagined, Observed, State
from genreward_fast.agent.sampling import Sampler
from genreward_fast.kernels.continuation_loss import continuation_loss
from genreward_fast.kernels.lambda_return import imagined_return, lambda_return
from genreward_fast.kernels.latent_kl import latent_kl
from genreward_fast.kernels.loss_total import loss_total
from genreward_fast.kernels.policy_loss import policy_loss
from genreward_fast.kernels.triton_support import runs_triton
from genreward_fast.types import Batch


@dataclass(frozen=True)
class Objective:
    """One update's losses and what they came from; B sequences of T trained rows, N = B * T, H imagined steps.

    Attributes:
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

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]
    tokens: Tensor
    observed: Observed
    imagined: Imagined
    imagined_reward: Tensor
    imagined_con: Tensor
    imagined_return: Tensor
    replay_return: Tensor


def compute(model: Model, config: AgentConfig, batch: Batch, sampler: Sampler, gradients: Gradients) -> Objective:
    """Computes the losses of one update and their gradients; moves the return range on the way, before a loss uses it.

    Only one loss whose gradient reaches the sequence waits for imagination: the replay value, whose targets come from
    it. So the world model's heads and decoder go there and back while imagination runs, and actor and critic learn
    while the gradients pass back through the sequence.

    Args:
        batch: `batch_length` + `context` rows with images and latents. The last context row's latents are the state
            to start from. Its reward and flags play no part, so nothing is reset at the first trained row unless that
            row starts an episode.
        gradients: gets those of the whole loss.
    """
    if batch.image is None or batch.deter is None or batch.stoch is None:
        raise ValueError("an update of the agent needs a batch with image, deter and stoch")
    k = config.context
    image = batch.image[:, k:]
    reward = batch.reward.to(config.wide_dtype)
    reward, last, terminal = (x[:, k:].contiguous() for x in (reward, batch.is_last, batch.is_terminal))
    stoch = one_hot(batch.stoch[:, k - 1], config.sizes.classes, config.compute_dtype)
    start = State(batch.deter[:, k - 1].to(config.compute_dtype), stoch)
    losses: dict[str, Tensor] = {}
    # The gradients of the scaled means, made before any other stream may ask for them.
    rows = last.numel()
    counts = {"policy": rows * config.imagination, "value": rows * config.imagination, "repval": rows - len(last)}
    kind = reward.dtype, reward.device
    shares = {name: _constant(scale / counts.get(name, rows), *kind) for name, scale in config.scales.items()}

    def learn(*names: str, more: Pairs = (), inputs: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """Adds the gradients of these losses."""
        ends = [(losses[name], shares[name].expand_as(losses[name])) for name in names]
        return gradients.add([*ends, *more], inputs)

    # World model.
    tokens = model.encoder(image)
    observed = model.rssm.observe(start, tokens, batch.action[:, k - 1 : -1], batch.is_first[:, k:], sampler)
    reached = [observed.state.deter, observed.state.stoch, observed.logit]
    with beside("world model", *reached, image, reward, terminal):
        deter, stoch, logit = seen = [x.detach().requires_grad_() for x in reached]
        losses["dyn"], losses["rep"], *entropies = latent_kl(
            logit, model.rssm.prior(deter), config.unimix, config.free_nats
        )
        reward_logits, con_logit = outputs([model.reward, model.continuation], State(deter, stoch).features())
        losses["reward"] = model.reward.distribution(reward_logits).loss(reward)
        con_scale = config.discount if config.continue_discount else 1.0
        losses["con"] = continuation_loss(con_logit.squeeze(-1), terminal, con_scale)
        losses["image"] = model.decoder.loss(deter, stoch, image)
        by_reached = learn("dyn", "rep", "reward", "con", "image", inputs=seen)
    (value_logits,) = outputs([model.critic], observed.state.features())

    # Imagination. Neither the start nor the imagined states pass a gradient on. Time comes first, so that leaving out
    # the last step leaves what is contiguous as it is.
    with torch.no_grad():
        states = State(observed.state.deter.detach().flatten(0, 1), observed.state.stoch.detach().flatten(0, 1))
        width = config.feature_size
        dreamed = tokens.new_empty(config.imagination + 1, len(states.deter), width)
        imagined = dream(model, states, dreamed, sampler)
    with beside("behaviour", dreamed):
        dreamed_logits, policy_raw = outputs([model.critic, model.actor], dreamed)
        value = model.critic.distribution(dreamed_logits)
        target_value = None if config.slow_target else value.pred()
    with torch.no_grad():
        fixed = outputs([model.reward, model.continuation, model.slow_critic], dreamed)
        dreamed_reward = model.reward.distribution(fixed[0]).pred()
        slow_value = model.slow_critic.distribution(fixed[2]).pred()
        join("behaviour", image.device)
        target_value = slow_value if target_value is None else target_value
        discount = 1.0 if config.continue_discount else config.discount
        dreamed_con, returns, weight = imagined_return(
            dreamed_reward, fixed[1].squeeze(-1), target_value, discount, config.lam
        )

    # Replay. The imagined returns of the same rows are what the replayed returns bootstrap from; the gradient of this
    # loss reaches the world model.
    bootstrap = returns[0].view(last.shape)
    replay_return = lambda_return(reward, terminal, last, bootstrap, config.discount, config.lam)
    losses["repval"] = critic_loss(
        model.critic.distribution(value_logits),
        replay_return,
        slow_value[0].view(last.shape)[:, :-1],
        config.slow_regularizer,
        torch.logical_not(last[:, :-1], out=torch.empty_like(replay_return)),
    )
    with beside("behaviour", returns, slow_value, weight, imagined.action):
        low, high, scale = model.return_range.update(returns).unbind()
        losses["policy"], entropy, stddev, advantage = policy_loss(
            policy_raw,
            imagined.action.transpose(0, 1),
            returns,
            target_value,
            weight,
            scale,
            config.min_std,
            config.max_std,
            config.entropy,
        )
        losses["value"] = critic_loss(value, returns, slow_value[:-1], config.slow_regularizer, weight[:-1])
    join("world model", image.device)
    # First: where both losses reach a parameter itself, this stream waits for the other one's gradient.
    learn("repval", more=list(zip(reached, by_reached)))
    with resumed("behaviour", image.device):
        learn("policy", "value")
    join("behaviour", image.device)

    # All means, magnitudes and deviations at once.
    measured = {
        "latent/prior_entropy": entropies[0],
        "latent/posterior_entropy": entropies[1],
        "policy/entropy": entropy,
        "policy/stddev": stddev,
        "policy/advantage": advantage,
        "imagined/reward": dreamed_reward,
        "imagined/con": dreamed_con,
        "imagined/return": returns,
        "imagined/value": target_value,
        "imagined/weight": weight[:-1],
        "replay/reward": reward,
        "replay/return": replay_return,
    }
    losses = {name: loss.detach() for name, loss in losses.items()}
    scales = [config.scales[name] for name in losses]
    loss, statistics = loss_total(list(losses.values()), scales, list(measured.values()))
    metrics = dict(zip([*(f"loss/{name}" for name in losses), *measured], statistics[0].unbind()))
    place = list(metrics).index("policy/advantage")
    metrics["policy/advantage_mean"] = metrics.pop("policy/advantage")
    metrics["policy/advantage_magnitude"], metrics["policy/advantage_std"] = statistics[1:, place].unbind()
    metrics |= {"loss/total": loss, "return/scale": scale, "return/low": low, "return/high": high}
    return Objective(
        losses={name: _batch_first(name, value) for name, value in losses.items()},
        metrics=metrics,
        tokens=tokens,
        observed=observed,
        imagined=imagined,
        imagined_reward=dreamed_reward.t(),
        imagined_con=dreamed_con.t(),
        imagined_return=returns.t(),
        replay_return=replay_return,
    )


@functools.cache
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Made once: the plain update before a capture makes what the graph then only reads."""
    return torch.full((), value, dtype=dtype, device=device)


def dream(model: Model, start: State, dreamed: Tensor, sampler: Sampler) -> Imagined:
    """Imagines from the states (N, ...), and writes their features and the next ones' to `dreamed`, (H + 1, N, F)."""
    if runs_triton(dreamed) and model.rssm.hidden_size == model.actor.units:
        torch.cat([start.deter, start.stoch.flatten(1)], 1, out=dreamed[0])
        return imagine(model.rssm, model.actor, dreamed, sampler)
    joined = model.actor.joined()

    def written(state: State, step: int) -> Tensor:
        return torch.cat([state.deter, state.stoch.flatten(1)], 1, out=dreamed[step])

    def policy(state: State, step: int) -> Tensor:
        normal = model.actor(written(state, step), joined)
        return sampler.action(normal.mean, normal.stddev, step)

    imagined = model.rssm.imagine(start, policy, len(dreamed) - 1, sampler)
    written(State(imagined.state.deter[:, -1], imagined.state.stoch[:, -1]), len(dreamed) - 1)
    return imagined


def _batch_first(name: str, loss: Tensor) -> Tensor:
    return loss.t() if name in ("policy", "value") else loss
