"""The replay: N ring buffers of rows, sampled as sequences and pairs, relabelled by the reward, resumed exactly.

A row is what arrived together (frame, arrival reward, flags, feature), the action then taken, and the world model's
latents computed while choosing it. Rows become sampleable when they are released, that is when their reward is final.
Sampling follows DreamerV3 (Hafner et al. 2023; its `embodied` replay with an online queue): every stretch of fresh rows
is trained on once, soon after it arrives, and the rest of a batch is uniform over all sequences. There, stretches of L
rows do not overlap but for their context, so each row is trained on online exactly once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genreward_fast.training.replay_config import ReplayConfig
from genreward_fast.training.replay_index import RowIndex
from genreward_fast.training.replay_saving import ReplayWriter
from genreward_fast.training.replay_storage import RowStore
from genreward_fast.types import Batch, Latents

PAIR_FIELDS = ("action", "reward", "flags", "feature")


class Replay:
    """Rows of N environments in rings of R = capacity // N slots each.

    Args:
        num_envs, capacity, sequence_length, context, action_size, feature_dim, deter_size, stoch_size, image_size,
            deter_dtype, withheld, chunk_bytes: see `ReplayConfig`.
        device: where batches are delivered. The rows are kept there too if they fit (`choose_device`).
        reserve: bytes that others will need beside the rows.
        seed: of the sampling.

    Attributes:
        config: the sizes.
        index: the counters `written`, `released`, `oldest`, each (N,) int64; to be read only.
        store: the arrays.

    Raises:
        UserError: the capacity is too small for one sequence per environment, or too large for the memory.
    """

    def __init__(
        self,
        num_envs: int,
        capacity: int,
        sequence_length: int,
        *,
        action_size: int,
        feature_dim: int,
        deter_size: int,
        stoch_size: int,
        context: int = 1,
        image_size: int = 64,
        deter_dtype: str = "bfloat16",
        withheld: int = 0,
        chunk_bytes: int = 256 * 2**20,
        device: torch.device | str = "cpu",
        seed: int = 0,
        reserve: int = 0,
    ) -> None:
        self.config = ReplayConfig(
            num_envs=num_envs,
            capacity=capacity,
            action_size=action_size,
            feature_dim=feature_dim,
            deter_size=deter_size,
            stoch_size=stoch_size,
            sequence_length=sequence_length,
            context=context,
            image_size=image_size,
            deter_dtype=deter_dtype,
            withheld=withheld,
            chunk_bytes=chunk_bytes,
        )
        self.store = RowStore(self.config, device, reserve)
        self.index = RowIndex(self.config, seed)
        self._writer = ReplayWriter(self.config, self.store)
        self._names = tuple(self.config.fields())

    @property
    def storage(self) -> torch.device:
        """The device that keeps the rows."""
        return self.store.storage

    def __len__(self) -> int:
        """Rows that may be sampled."""
        return self.index.rows()

    def append(
        self,
        image: Tensor,
        action: Tensor,
        reward: Tensor,
        is_first: Tensor,
        is_last: Tensor,
        is_terminal: Tensor,
        latents: Latents,
        feature: Tensor | None = None,
    ) -> np.ndarray:
        """Appends one row to every environment.

        Where `is_first` is set and the environment's row before is no episode's last, that row is made one: its episode
        was cut, by a crash, a resume or discarded rows. This one rule keeps all boundaries consistent.

        Args:
            image: (N, S, S, 3) uint8, the frames.
            action: (N, A) float, taken on seeing them.
            reward: (N,) float, for arriving here.
            is_first, is_last, is_terminal: (N,) bool; best on the host, where the bookkeeping is.
            latents: deter (N, deter) and stoch (N, stoch), the state with which the action was chosen.
            feature: (N, D) float, kept as float16; None if D is 0, or if `put_features` follows.

        Returns:
            (N,) int64, the number of the new row in each environment.
        """
        if feature is not None and not self.config.feature_dim:
            raise ValueError("this replay stores no features")
        if image.dtype != torch.uint8 or latents.stoch.dtype != torch.uint8:
            raise ValueError(f"image and stoch must be uint8, not {image.dtype} and {latents.stoch.dtype}")
        flags = torch.stack([is_first.cpu(), is_last.cpu(), is_terminal.cpu()], dim=-1).bool()
        if flags.shape != (self.config.num_envs, 3):
            raise ValueError(f"flags must have shape ({self.config.num_envs},), not {tuple(is_first.shape)}")
        values = {
            "image": image,
            "action": action,
            "reward": reward,
            "flags": flags,
            "deter": latents.deter,
            "stoch": latents.stoch,
        }
        if feature is not None:
            values["feature"] = feature
        slots = self.index.positions(np.arange(self.config.num_envs), self.index.written)
        self.store.scatter(self.store.index(slots), values)  # checks the shapes before anything is counted
        rows, cut = self.index.append(flags[:, 0].numpy(), flags[:, 1].numpy())
        if len(cut):
            self.store.arrays["flags"][self.store.index(cut), 1] = True
        return rows

    def put_features(self, rows: np.ndarray, feature: Tensor) -> None:
        """Stores the features of rows that were appended without: `rows` as `append` returned them, (N, D) float."""
        slots = self.index.positions(np.arange(self.config.num_envs), rows)
        self.store.scatter(self.store.index(slots), {"feature": feature})

    def release(self, env: int | np.ndarray, upto: int | np.ndarray) -> None:
        """Lets the rows of `env` below number `upto` be sampled: their rewards are final. Scalars or (W,) arrays.

        The line never moves back, and never beyond what is written.
        """
        for one, row in np.broadcast(env, upto):
            self.index.release(int(one), int(row))

    def generation(self, env: int) -> int:
        """Counts the times rows of `env` were discarded; take it along with row numbers that are used later."""
        return self.index.generation(env)

    def relabel(
        self,
        env: int | np.ndarray,
        start: int | np.ndarray,
        values: Tensor,
        generation: int | np.ndarray | None = None,
    ) -> None:
        """Adds `values` to the rewards of rows start, start + 1, ...

        Rows that are released (their rewards are final: trained on, perhaps, and on disk), overwritten or discarded are
        skipped. Discarded rows' numbers are given to new rows; where that may have happened since, `generation` (as it
        was when the rows were written) tells them apart.

        Args:
            env, start: scalars, or (W,) for W stretches at once.
            values: (n,) float, or (W, n).
            generation: scalar or (W,), from `generation(env)`.
        """
        values = torch.atleast_2d(values)
        shape = (values.shape[0],)
        envs, starts = (np.broadcast_to(np.asarray(x, np.int64), shape) for x in (env, start))
        since = [None] * len(envs) if generation is None else np.broadcast_to(generation, shape).tolist()
        rows = starts[:, None] + np.arange(values.shape[1])
        upto = np.array([self.index.valid_upto(int(e), g) for e, g in zip(envs, since)], np.int64)
        first = np.maximum(self.index.oldest, self.index.released)[envs]
        keep = (rows >= first[:, None]) & (rows < upto[:, None])
        if keep.any():
            flat = self.store.index(self.index.positions(envs[:, None], rows)[keep])
            kept = values if keep.all() else values[torch.from_numpy(keep).to(values.device)]
            self.store.add("reward", flat, kept.reshape(-1))

    def rollback(self, env: int, to_row: int) -> int:
        """Discards the rows of `env` from number `to_row` on, for instance those of an episode whose worker died.

        Rows that are on disk already are kept, as a cut episode: `append` closes it when the next one begins.

        Returns:
            The number that the next row of `env` gets.
        """
        return self.index.rollback(env, to_row)

    def write_back(self, index: Tensor, latents: Latents) -> None:
        """Stores fresher latents at the positions `index` (B, T) of a sampled batch.

        Positions are slots, not row numbers: call it before the next `append`, so that every slot still holds the row
        that was sampled. Of a row that occurs several times in the batch, the last latents are kept, on every device.

        Args:
            latents: deter (B, T, deter) and stoch (B, T, stoch).
        """
        self.store.scatter_last(index, {"deter": latents.deter, "stoch": latents.stoch})

    def rows(self, env: np.ndarray, start: np.ndarray, count: int) -> tuple[Tensor | None, Tensor, Tensor]:
        """Rows start .. start + count - 1 of each of W environments, released or not.

        Returns:
            feature (W, count, D) or None, action (W, count, A), reward (W, count).

        Raises:
            ValueError: one of the rows is not there any more, or not yet.
        """
        env, start = np.asarray(env, np.int64), np.asarray(start, np.int64)
        if (start < self.index.oldest[env]).any() or (start + count > self.index.written[env]).any():
            raise ValueError(f"rows {start} to {start + count - 1} of environments {env} are not all in the replay")
        positions = self.index.positions(env[:, None], start[:, None] + np.arange(count))
        fields = self.store.gather(self.store.index(positions), [n for n in PAIR_FIELDS if n in self._names])
        return fields.get("feature"), fields["action"], fields["reward"]

    def can_sample(self) -> bool:
        """Whether `sample` has a sequence to draw."""
        return self.index.starts() > 0

    def can_sample_pairs(self) -> bool:
        """Whether `sample_pairs` has a pair to draw."""
        return self.config.feature_dim > 0 and self.index.has_pairs()

    def draw(self, batch: int) -> np.ndarray:
        """(batch, L + context) int64 flat positions of the next sequences, for a later `gather`."""
        return self.index.draw(batch)

    def gather(self, index: Tensor) -> Batch:
        """All fields of the rows at `index` (B, T) int64. A CUDA graph can capture it if the rows are on the GPU."""
        return _batch(index.to(self.store.device), self.store.gather(index, self._names))

    def sample(self, batch: int) -> Batch:
        """A batch of (batch, L + context) rows: queued fresh stretches first, the others uniform over all sequences.

        Sequences are consecutive rows of one environment and may cross the ends of episodes, but never the line of
        release or rows that were overwritten.

        Raises:
            RuntimeError: nothing to sample yet (`can_sample`).
        """
        return self.gather(self.store.index(self.draw(batch)))

    def sample_pairs(self, count: int) -> Batch:
        """(count, 2) consecutive rows of one episode, uniform over all such pairs; no images and no latents.

        Raises:
            RuntimeError: nothing to sample yet (`can_sample_pairs`).
            ValueError: no features are stored.
        """
        if not self.config.feature_dim:
            raise ValueError("this replay stores no features, so it has no pairs to learn from")
        index = self.store.index(self.index.draw_pairs(count))
        return _batch(index.to(self.store.device), self.store.gather(index, PAIR_FIELDS))

    def save(self, folder: str | Path) -> dict:
        """Writes what was released since the last call, and returns what a checkpoint must hold to go on from here.

        The cost is proportional to the new rows. Latents written back to a row after it was saved are not saved again:
        a few updates after a resume refresh them. Call `commit` once the checkpoint is safely stored.

        Returns:
            Plain JSON values.

        Raises:
            UserError: a file cannot be written, or earlier chunks lie in another folder.
        """
        return self._writer.save(folder, self.index)

    def commit(self, folder: str | Path) -> None:
        """Deletes the chunks that the state last returned by `save` no longer needs. Call it when that is stored."""
        self._writer.commit(folder)

    def withheld(self) -> dict[str, Tensor]:
        """The rows that are not released yet, for the checkpoint itself: chunks hold rows whose rewards are final.

        Returns:
            "counts" (N,) int64, rows of each environment; and every field, (sum of counts, ...), on the host.
        """
        first = np.maximum(self.index.released, self.index.oldest)
        positions = [
            self.index.positions(np.array(env), np.arange(first[env], self.index.written[env]))
            for env in range(self.config.num_envs)
        ]
        where = self.store.index(np.concatenate(positions))
        fields = {name: torch.index_select(array, 0, where).cpu() for name, array in self.store.arrays.items()}
        return {"counts": torch.from_numpy(self.index.written - first), **fields}

    def load_withheld(self, state: dict[str, Tensor]) -> None:
        """Appends the rows that `withheld` returned, after `load`. They keep their numbers, and wait for `release`."""
        fields = {name: value for name, value in state.items() if name != "counts"}
        start = 0
        for env, count in enumerate(state["counts"].tolist()):
            mine = {name: value[start : start + count] for name, value in fields.items()}
            rows = self.index.extend(env, mine["flags"][:, 1].numpy())
            self.store.scatter(self.store.index(self.index.positions(np.array(env), rows)), mine)
            start += count

    def load(self, folder: str | Path, state: dict) -> None:
        """Continues from a `state` that `save` returned; the replay must be new. The capacity may differ.

        Row numbers and random choices go on as they would have. Rows that were not released are not in the chunks
        (`load_withheld`). Chunks in `folder` that `state` does not name were written after it, and are removed.

        Raises:
            UserError: a chunk is missing, damaged or foreign, or the state was saved with other shapes.
        """
        if self.index.written.any():
            raise RuntimeError("a replay can only be loaded before rows are appended")
        self.index = self._writer.load(folder, state)


def _batch(index: Tensor, rows: dict[str, Tensor]) -> Batch:
    flags = rows.pop("flags")
    return Batch(index=index, is_first=flags[..., 0], is_last=flags[..., 1], is_terminal=flags[..., 2], **rows)
