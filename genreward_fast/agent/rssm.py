"""The recurrent state-space model: a block-diagonal GRU with categorical latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genreward_fast.agent.config import AgentConfig
from genreward_fast.agent.distributions import mixed_probs, straight_through
from genreward_fast.agent.nets import MLP, BlockLinear, Dense, Linear, RMSNorm, block_matmul
from genreward_fast.agent.sampling import Sampler


@dataclass(frozen=True)
class State:
    """The model's state for each of (...) rows.

    Attributes:
        deter: (..., deter).
        stoch: (..., stoch, classes), one-hot; all zeros after a reset.
    """

    deter: Tensor
    stoch: Tensor

    def features(self) -> Tensor:
        """(..., deter + stoch * classes), what the heads read."""
        return torch.cat([self.deter, self.stoch.flatten(-2)], -1)

    def detach(self) -> State:
        """The same numbers without their gradients."""
        return State(self.deter.detach(), self.stoch.detach())


@dataclass(frozen=True)
class Observed:
    """What `RSSM.observe` makes of B sequences of T rows.

    Attributes:
        state: (B, T, ...); `state.stoch` carries straight-through gradients.
        index: (B, T, stoch) int64, the drawn classes.
        logit: (B, T, stoch, classes), raw logits of the posterior.
    """

    state: State
    index: Tensor
    logit: Tensor


@dataclass(frozen=True)
class Imagined:
    """What `RSSM.imagine` makes of N states in H steps.

    Attributes:
        state: (N, H, ...), the states after each action.
        action: (N, H, A) float32.
        logit: (N, H, stoch, classes), raw logits of the prior.
    """

    state: State
    action: Tensor
    logit: Tensor


@dataclass(frozen=True)
class _CoreWeights:
    """The hidden layer's weight, (blocks, deter / blocks + 3 * hidden, deter / blocks), taken apart by its inputs: all
    blocks see the same 3 * hidden values, so that part is one dense matrix, and what comes from the action can be
    computed before the scan."""

    deter: Tensor  # (blocks, deter / blocks, deter / blocks)
    shared: Tensor  # (2 * hidden, deter): the embedded deter and stoch
    action: Tensor  # (hidden, deter)


class RSSM(nn.Module):
    """Sequence model, posterior and prior (Nature 2025, "World model learning").

    All states are computed in `dtype`; distributions over latents are float32.
    """

    def __init__(self, config: AgentConfig, action_size: int, tokens: int) -> None:
        super().__init__()
        sizes = config.sizes
        self.dtype, self.unimix = config.compute_dtype, config.unimix
        self.deter, self.hidden_size, self.blocks = sizes.deter, sizes.hidden, sizes.blocks
        self.stoch, self.classes = sizes.stoch, sizes.classes
        flat = sizes.stoch * sizes.classes
        self.deter_in = Dense(sizes.deter, sizes.hidden)
        self.stoch_in = Dense(flat, sizes.hidden)
        self.action_in = Dense(action_size, sizes.hidden)
        self.hidden = BlockLinear(sizes.deter + sizes.blocks * 3 * sizes.hidden, sizes.deter, sizes.blocks)
        self.hidden_norm = RMSNorm(sizes.deter)
        self.gates = BlockLinear(sizes.deter, 3 * sizes.deter, sizes.blocks)
        self.prior_mlp = MLP(sizes.deter, sizes.hidden, layers=2)
        self.prior_logit = Linear(sizes.hidden, flat)
        self.posterior = Dense(sizes.deter + tokens, sizes.hidden)
        self.posterior_logit = Linear(sizes.hidden, flat)

    def initial(self, n: int, device: torch.device) -> State:
        """n states of zeros."""
        deter = torch.zeros(n, self.deter, dtype=self.dtype, device=device)
        return State(deter, torch.zeros(n, self.stoch, self.classes, dtype=self.dtype, device=device))

    def prior(self, deter: Tensor) -> Tensor:
        """(..., deter) to the raw logits (..., stoch, classes) of the latent to expect."""
        return self._latents(self.prior_logit(self.prior_mlp(deter)))

    def core(self, state: State, action: Tensor) -> Tensor:
        """One step of the GRU: states (N, ...) and actions (N, A) to the next deter (N, deter)."""
        weights = self._core_weights()
        return self._core(weights, state.deter, state.stoch.flatten(1), self._embed_action(weights, action))

    def observe(self, state: State, tokens: Tensor, action: Tensor, reset: Tensor, sampler: Sampler) -> Observed:
        """Filters sequences.

        Args:
            state: (B, ...) before the first row.
            tokens: (B, T, tokens) of the encoder.
            action: (B, T, A), the action *before* each row.
            reset: (B, T) bool; where true, the state and the action before the row are zero.
            sampler: draws "posterior" latents.
        """
        weights = self._core_weights()
        embedded = self._embed_action(weights, action.masked_fill(reset.unsqueeze(-1), 0))
        linear = self.posterior.linear
        from_deter, from_tokens = linear.weight.to(self.dtype).split([self.deter, tokens.shape[-1]], 1)
        evidence = F.linear(tokens.to(self.dtype), from_tokens, linear.bias.to(self.dtype))
        from_deter = from_deter.t()

        deter, stoch = state.deter.to(self.dtype), state.stoch.to(self.dtype).flatten(1)
        deters, stochs, indices, logits = [], [], [], []
        steps = zip(embedded.unbind(1), evidence.unbind(1), reset.unsqueeze(-1).unbind(1))
        for t, (action_part, evidence_part, fresh) in enumerate(steps):
            deter = self._core(weights, deter.masked_fill(fresh, 0), stoch.masked_fill(fresh, 0), action_part)
            x = F.silu(self.posterior.norm(torch.addmm(evidence_part, deter, from_deter)))
            logit = self._latents(self.posterior_logit(x))
            probs = mixed_probs(logit, self.unimix)
            index = sampler.latent(probs.detach(), "posterior", t)
            onehot = straight_through(index, probs).to(self.dtype)
            stoch = onehot.flatten(1)
            deters.append(deter)
            stochs.append(onehot)
            indices.append(index)
            logits.append(logit)
        states = State(torch.stack(deters, 1), torch.stack(stochs, 1))
        return Observed(states, torch.stack(indices, 1), torch.stack(logits, 1))

    def imagine(self, state: State, policy: Callable[[State, int], Tensor], steps: int, sampler: Sampler) -> Imagined:
        """Rolls the prior forward.

        Args:
            state: (N, ...) to start from.
            policy: a state and the number of the step, from 0, to actions (N, A).
            steps: H.
            sampler: draws "prior" latents.
        """
        weights = self._core_weights()
        state = State(state.deter.to(self.dtype), state.stoch.to(self.dtype))
        states, actions, logits = [], [], []
        for t in range(steps):
            action = policy(state, t)
            deter = self._core(weights, state.deter, state.stoch.flatten(1), self._embed_action(weights, action))
            logit = self.prior(deter)
            probs = mixed_probs(logit, self.unimix)
            index = sampler.latent(probs.detach(), "prior", t)
            state = State(deter, straight_through(index, probs).to(self.dtype))
            states.append(state)
            actions.append(action)
            logits.append(logit)
        stacked = State(torch.stack([s.deter for s in states], 1), torch.stack([s.stoch for s in states], 1))
        return Imagined(stacked, torch.stack(actions, 1), torch.stack(logits, 1))

    def _latents(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.stoch, self.classes))

    def _core_weights(self) -> _CoreWeights:
        weight, hidden = self.hidden.weight.to(self.dtype), self.hidden_size
        deter, shared, action = weight.split([self.deter // self.blocks, 2 * hidden, hidden], 1)
        return _CoreWeights(
            deter=deter,
            shared=shared.transpose(0, 1).reshape(2 * hidden, self.deter),
            action=action.transpose(0, 1).reshape(hidden, self.deter),
        )

    def _embed_action(self, weights: _CoreWeights, action: Tensor) -> Tensor:
        """(..., A) to its share (..., deter) of the hidden layer before the norm, the bias included."""
        action = action.to(self.dtype)
        # A constant denominator: beyond [-1, 1] the gradient is scaled, not cut.
        action = action / action.detach().abs().clamp(min=1)
        return self.action_in(action) @ weights.action + self.hidden.bias.to(self.dtype)

    def _core(self, weights: _CoreWeights, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """(N, deter), flat (N, stoch * classes) and the embedded action (N, deter) to the next deter."""
        shared = torch.cat([self.deter_in(deter), self.stoch_in(stoch)], -1)
        x = block_matmul(deter, weights.deter) + torch.addmm(action, shared, weights.shared)
        x = F.silu(self.hidden_norm(x))
        # Inside each block lie its reset, candidate and update values.
        gates = self.gates(x).view(-1, self.blocks, 3, self.deter // self.blocks)
        reset, candidate, update = (gate.flatten(1) for gate in gates.unbind(2))
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(deter, candidate, torch.sigmoid(update - 1))
