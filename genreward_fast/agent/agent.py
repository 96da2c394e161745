"""The DreamerV3 agent: acts on images, learns from replayed sequences, saves and restores itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genreward_fast.agent import objective
from genreward_fast.agent.config import AgentConfig
from genreward_fast.agent.model import Model
from genreward_fast.agent.optimizer import LaProp
from genreward_fast.agent.parallel import Parallel
from genreward_fast.agent.precision import reproducible
from genreward_fast.agent.rows import Rows
from genreward_fast.agent.rssm import State
from genreward_fast.agent.sampling import RandomSampler, Sampler
from genreward_fast.agent.saving import Saving
from genreward_fast.captured import Captured
from genreward_fast.types import Batch, Latents

_BATCH_FIELDS = ("image", "action", "reward", "is_first", "is_last", "is_terminal", "deter", "stoch")
_NO_INDEX = torch.empty(0, dtype=torch.int64)
_RANK_STRIDE = 1_000_003  # between the seeds of two processes


@dataclass(frozen=True)
class Carry:
    """What an agent remembers of N environments between two steps.

    Attributes:
        state: (N, ...), the world model's state at the last row.
        action: (N, A) float32 in [-1, 1], the action taken there.
    """

    state: State
    action: Tensor


class Agent(Saving):
    """DreamerV3 (Hafner et al., Nature 2025), as in the published code of 2025.

    Attributes:
        config: hyperparameters.
        action_size: A.
        device: where everything lives.
        updates: updates made so far.
        model: the networks and the return range.
        optimizer: its state is part of `state_dict`.
        sampler: the source of all random draws, with its own generator on the device.
        parallel: the processes that train together, each on its own share of the batches; None for one alone.

    On CUDA, `update` and `act` run as CUDA graphs (`AgentConfig.capture`), unless a call brings a sampler that is not a
    `RandomSampler`. The first call of each shape runs plainly, the second records its graph; so the parameters, moments
    and return range must stay the tensors that they are, as `load_state_dict` leaves them. With dtype "float32" nothing
    there goes through TF32, whatever the process allows elsewhere.
    """

    def __init__(
        self,
        config: AgentConfig,
        action_size: int,
        device: torch.device | str,
        seed: int = 0,
        parallel: Parallel | None = None,
    ) -> None:
        """Draws the initial parameters on the host, so that a seed gives the same ones on every device, in every dtype.

        With `parallel`, `update` and the loading of states are collective: all processes call them together. All
        start from the first one's parameters, and draw from different generators. Gradients and metrics are means over
        the processes, return percentiles are those of all returns; so equal shares of a batch update the parameters as
        the whole batch would, and they stay the same everywhere.
        """
        self.config, self.action_size, self.device = config, action_size, torch.device(device)
        self.model = Model(config, action_size)
        self.model.initialize(torch.Generator().manual_seed(seed))
        self.model.to(self.device)
        self.model.flatten()
        self.parallel = parallel
        self._seed = seed + (0 if parallel is None else parallel.rank * _RANK_STRIDE)
        self.sampler = RandomSampler(self.device, self._seed)
        self.optimizer = LaProp(
            self.model.flat,
            lr=config.lr,
            warmup=config.warmup,
            beta1=config.beta1,
            beta2=config.beta2,
            eps=config.eps,
            agc=config.agc,
            agc_min=config.agc_min,
            copy=None if self.model.casts is None else self.model.casts.buffer,
            follower=self.model.follower(config.slow_rate),
        )
        if parallel is not None:
            self.optimizer.reduce = parallel.mean_
            self.model.return_range.gather = parallel.gather
            self._share_state()
        self._metric_names: list[str] = []
        self._captured: dict[str, Captured] = {}
        self._rows: Rows | None = None
        if config.capture and self.device.type == "cuda" and config.dtype != "float64":
            generator = self.sampler.generator
            self._captured["update"] = Captured(self._update, generator)
            for mode in ("sample", "mean"):
                self._captured[mode] = Captured(self._actor_of(mode), generator, limit=4, carried=3)

    @property
    def updates(self) -> int:
        """Updates made so far."""
        return self.optimizer.step_count

    def initial(self, n: int) -> Carry:
        """The carry of n environments before their first step: all zeros."""
        action = torch.zeros(n, self.action_size, device=self.device)
        return Carry(self.model.rssm.initial(n, self.device), action)

    @torch.no_grad()
    def act(
        self,
        image: Tensor,
        is_first: Tensor,
        carry: Carry,
        mode: Literal["sample", "mean"] = "sample",
        sampler: Sampler | None = None,
    ) -> tuple[Tensor, Carry, Latents]:
        """One step of N environments.

        Args:
            image: (N, 64, 64, 3) uint8 on the device.
            is_first: (N,) bool on the device; where true, the carried state and action count as zero.
            carry: of the previous step.
            mode: "sample" draws the action, "mean" takes the policy's mean. The latent is drawn in both.
            sampler: another source of draws, for an evaluation that must leave the training's draws as they are.

        Returns:
            Actions (N, A) float32 in [-1, 1] (cut there; the world model reads a longer action as its cut, so nothing
            is lost), the next carry, and the latents (N, ...) of this row for the replay.
        """
        self.model.refresh()
        state = carry.state
        inputs = (image, is_first, state.deter, state.stoch, carry.action)
        if mode in self._captured and (sampler is None or type(sampler) is RandomSampler):
            with self._drawing_from(sampler):
                deter, stoch, action, index = self._captured[mode](*inputs)
        else:
            deter, stoch, action, index = self._act(mode, sampler or self.sampler, *inputs)
        return action, Carry(State(deter, stoch), action), Latents(deter, index)

    def _act(
        self,
        mode: str,
        sampler: Sampler,
        image: Tensor,
        is_first: Tensor,
        deter: Tensor,
        stoch: Tensor,
        action: Tensor,
    ) -> tuple[Tensor, ...]:
        """The new deter and one-hot stoch, the action, and the uint8 indices of the stoch.

        What is carried on stands in the order of the arguments, so that a graph takes it back in one copy.
        """
        with self._products():
            observed = self.model.rssm.observe(
                State(deter, stoch),
                self.model.encoder(image).unsqueeze(1),
                action.unsqueeze(1),
                is_first.unsqueeze(1),
                sampler,
            )
            state = State(observed.state.deter[:, 0], observed.state.stoch[:, 0])
            policy = self.model.actor(state.features())
        action = policy.mean if mode == "mean" else sampler.action(policy.mean, policy.stddev, 0)
        return state.deter, state.stoch, action.clamp(-1, 1), observed.index[:, 0].to(torch.uint8)

    def _products(self) -> AbstractContextManager[None]:
        """What to compute in, so that float32 is float32 and the same inputs give the same bits."""
        if self.device.type != "cuda":
            return nullcontext()
        return reproducible(exact=self.config.compute_dtype == torch.float32)

    def _actor_of(self, mode: str) -> Callable[..., tuple[Tensor, ...]]:
        return lambda *inputs: self._act(mode, self.sampler, *inputs)

    @contextmanager
    def _drawing_from(self, sampler: Sampler | None) -> Iterator[None]:
        """Lends the state of another sampler to the generator that the graphs draw from."""
        if not isinstance(sampler, RandomSampler) or sampler is self.sampler:
            yield
            return
        own = self.sampler.generator.get_state()
        self.sampler.generator.set_state(sampler.generator.get_state())
        yield
        sampler.generator.set_state(self.sampler.generator.get_state())
        self.sampler.generator.set_state(own)

    def update(self, batch: Batch, sampler: Sampler | None = None) -> tuple[dict[str, Tensor], Latents]:
        """One update of all networks.

        Never waits for the device, and never raises over bad numbers: each loss is in the metrics, where a NaN shows.

        Args:
            batch: (B, T, ...), T = `batch_length` + `context`, on the device, with image, deter and stoch. Its first
                `context` rows are not trained on: the last of them gives the state to start from.
            sampler: another source of draws.

        Returns:
            Metrics, each 0-d on the device; and the latents (B, T - context, ...) of the trained rows, to be written
            back into the replay.
        """
        if batch.image is None or batch.deter is None or batch.stoch is None:
            raise ValueError("an update of the agent needs a batch with image, deter and stoch")
        inputs = [getattr(batch, name) for name in _BATCH_FIELDS]
        self.model.refresh()
        self.optimizer.advance()
        if "update" in self._captured and sampler is None:
            values, deter, stoch = self._captured["update"](*inputs)
        else:
            values, deter, stoch = self._update(*inputs, sampler=sampler)
        return self._metrics(values), Latents(deter, stoch)

    def update_from(self, rows: Rows, index: Tensor) -> dict[str, Tensor]:
        """`update` with rows of a replay, whose latents are renewed: gathering, learning and writing back.

        On CUDA, if the rows are kept there, all of it is one CUDA graph; else it is done step by step. Never waits for
        the device, unless the rows are elsewhere.

        Args:
            rows: best always the same ones, since a graph belongs to them.
            index: (B, T) int64 on the host, T = `batch_length` + `context`. It may be overwritten after the call.

        Returns:
            Metrics, each 0-d on the device.
        """
        if not self._captured or rows.storage.type != "cuda":
            batch = rows.gather(index)
            metrics, latents = self.update(batch)
            rows.write_back(batch.index[:, self.config.context :], latents)
            return metrics
        if self._rows is not rows:
            self._rows = rows
            self._captured["rows"] = Captured(self._update_rows, self.sampler.generator)
        self.model.refresh()
        self.optimizer.advance()
        # Pinned memory comes from a pool that lends it again only when the copy out of it has been done.
        (values,) = self._captured["rows"](index.pin_memory())
        return self._metrics(values)

    def _update_rows(self, index: Tensor) -> tuple[Tensor]:
        assert self._rows is not None
        batch = self._rows.gather(index)
        values, deter, stoch = self._update(*(getattr(batch, name) for name in _BATCH_FIELDS))
        self._rows.write_back(index[:, self.config.context :], Latents(deter, stoch))
        return (values,)

    def _metrics(self, values: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._metric_names, values.unbind()))

    def _update(self, *inputs: Tensor, sampler: Sampler | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """All of an update that happens on the device: the metrics in one tensor, and the latents."""
        batch = Batch(**dict(zip(_BATCH_FIELDS, inputs)), index=_NO_INDEX)
        with self._products(), self.model.recording() as gradients:
            result = objective.compute(self.model, self.config, batch, sampler or self.sampler, gradients)
        # With the step moves the slow critic: that of the next update knows of this one's parameters.
        norm = self.optimizer.apply(gradients.total())
        metrics = {**result.metrics, "opt/grad_norm": norm}
        self._metric_names = list(metrics)
        observed, values = result.observed, torch.stack(list(metrics.values()))
        if self.parallel is not None:
            self.parallel.mean_(values)
        return values, observed.state.deter.detach(), observed.index.to(torch.uint8)

    def _share_state(self) -> None:
        """Gives all processes the first one's parameters, moments and return range."""
        assert self.parallel is not None
        ranges = (self.model.return_range.low, self.model.return_range.high)
        for tensor in (self.model.flat.buffer, self.model.slow.buffer, *self.optimizer.buffers, *ranges):
            self.parallel.broadcast_(tensor)
        self.model.refresh(force=True)
