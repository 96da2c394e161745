"""The recurrent state-space model: a block-diagonal GRU with categorical latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genreward_fast.agent.config import AgentConfig
from genreward_fast.agent.core import CoreValues, CoreWeights, core_forward
from genreward_fast.agent.dense import linear
from genreward_fast.agent.fused_scan import fused_scan
from genreward_fast.agent.nets import MLP, BlockLinear, Dense, Linear, RMSNorm
from genreward_fast.agent.sampling import Sampler
from genreward_fast.agent.scan import scan
from genreward_fast.kernels.rssm_step import StepWeights
from genreward_fast.kernels.rssm_tiles import ROWS
from genreward_fast.kernels.triton_support import runs_triton


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


class RSSM(nn.Module):
    """Sequence model, posterior and prior (Nature 2025, "World model learning").

    All states are computed in `dtype`; distributions over latents are float32, or float64 with it.
    """

    def __init__(self, config: AgentConfig, action_size: int, tokens: int) -> None:
        super().__init__()
        sizes = config.sizes
        self.dtype, self.unimix = config.compute_dtype, config.unimix
        self.deter, self.hidden_size, self.blocks = sizes.deter, sizes.hidden, sizes.blocks
        self.stoch, self.classes = sizes.stoch, sizes.classes
        flat = sizes.stoch * sizes.classes
        # The fused scan cuts everything into tiles of 16.
        pieces = (sizes.deter // sizes.blocks, sizes.hidden, flat)
        self._fused = not any(piece % ROWS for piece in pieces)
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
        """One step of the GRU: states (N, ...) and actions (N, A) to the next deter (N, deter).

        Layer by layer, as the paper has it; `observe` and `imagine` compute the same in a form that is faster.
        """
        rows, piece = len(action), self.deter // self.blocks
        inputs = [
            self.deter_in(state.deter),
            self.stoch_in(state.stoch.flatten(1)),
            self.action_in(_cut(action.to(self.dtype))),
        ]
        shared = torch.cat(inputs, -1).unsqueeze(1).expand(-1, self.blocks, -1)
        x = torch.cat([state.deter.unflatten(1, (self.blocks, -1)), shared], -1)
        gates = self.gates(self.hidden_norm.silu(self.hidden(x.flatten(1))))
        # Inside each block lie its reset, candidate and update values.
        reset, candidate, update = (x.flatten(1) for x in gates.view(rows, self.blocks, 3, piece).unbind(2))
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(state.deter, candidate, torch.sigmoid(update - 1))

    def observe(self, state: State, tokens: Tensor, action: Tensor, reset: Tensor, sampler: Sampler) -> Observed:
        """Filters sequences.

        Args:
            state: (B, ...) before the first row.
            tokens: (B, T, tokens) of the encoder.
            action: (B, T, A), the action *before* each row.
            reset: (B, T) bool; where true, the state and the action before the row are zero.
            sampler: draws "posterior" latents.
        """
        weight, *biases = self.posterior.linear.casts(self.dtype)
        from_deter, from_tokens = weight.split([self.deter, tokens.shape[-1]], 1)
        evidence = linear(tokens.to(self.dtype), from_tokens, *biases)
        deter, stoch = state.deter.to(self.dtype), state.stoch.to(self.dtype)
        action = action.masked_fill(reset.unsqueeze(-1), 0)
        if self._fused and runs_triton(deter):
            deters, stochs, logits, indices = fused_scan(
                sampler,
                self.unimix,
                reset,
                deter.contiguous(),
                stoch.contiguous(),
                self.action_in(_cut(action.to(self.dtype))),
                evidence,
                self.hidden.cast("bias", self.dtype),
                self._step_weights(from_deter),
            )
            return Observed(State(deters, stochs), indices, logits)
        if reset.shape[1] == 1 and not torch.is_grad_enabled():
            return self._observe_row(State(deter, stoch), evidence[:, 0], from_deter, action[:, 0], reset, sampler)
        core, from_action = self._core_weights()
        embedded = self._embed_action(from_action, action)
        output = self.posterior_logit
        to_logits = output.cast("weight", self.dtype), output.cast("bias", self.dtype)
        posterior = (from_deter, self.posterior.norm.scale, *to_logits)
        deters, stochs, logits, indices = scan(
            sampler, self.unimix, reset, deter, stoch, embedded, evidence, posterior, core
        )
        return Observed(State(deters, stochs), indices, logits)

    def _observe_row(
        self, state: State, evidence: Tensor, from_deter: Tensor, action: Tensor, reset: Tensor, sampler: Sampler
    ) -> Observed:
        """`observe` for T = 1, layer by layer: with few rows to act on, each operation costs more than its numbers."""
        before = State(state.deter.masked_fill(reset, 0), state.stoch.masked_fill(reset.unsqueeze(-1), 0))
        deter = self.core(before, action)
        seen = self.posterior.norm.silu(torch.addmm(evidence, deter, from_deter.t()))
        logit = self._latents(self.posterior_logit(seen))
        index, stoch = sampler.latent(logit, self.unimix, "posterior", 0)
        return Observed(State(deter.unsqueeze(1), stoch.unsqueeze(1)), index.unsqueeze(1), logit.unsqueeze(1))

    @torch.no_grad()
    def imagine(self, state: State, policy: Callable[[State, int], Tensor], steps: int, sampler: Sampler) -> Imagined:
        """Rolls the prior forward, without gradients.

        Args:
            state: (N, ...) to start from.
            policy: a state and the number of the step, from 0, to actions (N, A).
            steps: H.
            sampler: draws "prior" latents.
        """
        weights, from_action = self._core_weights()
        state = State(state.deter.to(self.dtype).contiguous(), state.stoch.to(self.dtype).contiguous())
        states, actions, logits = [], [], []
        for t in range(steps):
            action = policy(state, t)
            deter = torch.empty_like(state.deter)
            values = CoreValues.make(weights, self._embed_action(from_action, action))
            core_forward(weights, state.deter, state.stoch.flatten(1), values, deter)
            logit = self.prior(deter)
            state = State(deter, sampler.latent(logit, self.unimix, "prior", t)[1])
            states.append(state)
            actions.append(action)
            logits.append(logit)
        stacked = State(torch.stack([s.deter for s in states], 1), torch.stack([s.stoch for s in states], 1))
        return Imagined(stacked, torch.stack(actions, 1), torch.stack(logits, 1))

    def _latents(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.stoch, self.classes))

    def _step_weights(self, from_deter: Tensor) -> StepWeights:
        deter, stoch, posterior = self.deter_in, self.stoch_in, self.posterior_logit
        return StepWeights(
            deter_in=deter.linear.cast("weight", self.dtype),
            deter_bias=deter.linear.cast("bias", self.dtype),
            deter_scale=deter.norm.scale,
            stoch_in=stoch.linear.cast("weight", self.dtype),
            stoch_bias=stoch.linear.cast("bias", self.dtype),
            stoch_scale=stoch.norm.scale,
            hidden=self.hidden.cast("weight", self.dtype),
            hidden_scale=self.hidden_norm.scale,
            gates=self.gates.cast("weight", self.dtype),
            gates_bias=self.gates.cast("bias", self.dtype),
            from_deter=from_deter,
            posterior_scale=self.posterior.norm.scale,
            logit=posterior.cast("weight", self.dtype),
            logit_bias=posterior.cast("bias", self.dtype),
        )

    def _core_weights(self) -> tuple[CoreWeights, Tensor]:
        """The GRU's weights in `dtype`, and what its hidden layer takes of the embedded action, (hidden, deter)."""
        deter_in, stoch_in, hidden = self.deter_in, self.stoch_in, self.hidden_size
        weight = self.hidden.cast("weight", self.dtype)
        deter, *dense = weight.split([self.deter // self.blocks, 2 * hidden, hidden], 1)
        shared, from_action = (part.transpose(0, 1).reshape(-1, self.deter) for part in dense)
        core = CoreWeights(
            deter_in=deter_in.linear.cast("weight", self.dtype),
            stoch_in=stoch_in.linear.cast("weight", self.dtype),
            in_bias=torch.cat([layer.linear.cast("bias", self.dtype) for layer in (deter_in, stoch_in)]),
            in_scale=torch.stack([deter_in.norm.scale, stoch_in.norm.scale]),
            hidden=deter,
            shared=shared,
            hidden_scale=self.hidden_norm.scale,
            gates=self.gates.cast("weight", self.dtype),
            gates_bias=self.gates.cast("bias", self.dtype),
        )
        return core, from_action

    def _embed_action(self, from_action: Tensor, action: Tensor) -> Tensor:
        """(..., A) to its share (..., deter) of the hidden layer before the norm, the bias included."""
        return self.action_in(_cut(action.to(self.dtype))) @ from_action + self.hidden.cast("bias", self.dtype)


def _cut(action: Tensor) -> Tensor:
    """Actions with their values cut to [-1, 1], by a constant denominator: beyond, the gradient is scaled, not cut."""
    return action / action.detach().abs().clamp(min=1)
