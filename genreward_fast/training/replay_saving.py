"""Saving a replay as it grows, and loading it again at exactly the point of a checkpoint."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.training import replay_chunks
from genreward_fast.training.replay_chunks import Chunk, Stretch
from genreward_fast.training.replay_config import ReplayConfig
from genreward_fast.training.replay_index import RowIndex
from genreward_fast.training.replay_storage import RowStore

FORMAT = 1


class ReplayWriter:
    """Keeps account of which rows lie in which chunk of a folder.

    A chunk is deleted in two steps. `save` leaves it out of the new state, but the last checkpoint still needs it until
    the new one is stored; then `commit` removes the file.
    """

    def __init__(self, config: ReplayConfig, store: RowStore) -> None:
        self.config = config
        self.store = store
        self._run = uuid.uuid4().hex  # tells this run's chunks from those of another
        self._folder: Path | None = None
        self._chunks: list[Chunk] = []
        self._obsolete: list[str] = []
        self._next = 0

    def save(self, folder: str | Path, index: RowIndex) -> dict[str, Any]:
        """See `Replay.save`."""
        folder = Path(folder)
        if self._folder is not None and folder.resolve() != self._folder:
            raise UserError(f"{folder}: this replay's earlier rows are saved in {self._folder}: save it there")
        for stretches in replay_chunks.split(
            index.unsaved(), max(1, self.config.chunk_bytes // self.config.row_bytes())
        ):
            rows = self._rows(index, stretches)
            self._chunks.append(replay_chunks.write_chunk(folder, self._next, self._run, stretches, rows))
            self._next += 1
            self._folder = folder.resolve()
            for env, _, stop in stretches:  # one by one: if the disk fills up, what is written stays written
                index.saved[env] = stop
        np.maximum(index.saved, index.released, out=index.saved)
        self._obsolete += [chunk.file for chunk in self._chunks if not chunk.alive(index.oldest)]
        self._chunks = [chunk for chunk in self._chunks if chunk.alive(index.oldest)]
        return {
            "format": FORMAT,
            "run": self._run,
            "layout": self.config.layout(),
            "index": index.state(),
            "chunks": [chunk.to_json() for chunk in self._chunks],
            "next_chunk": self._next,
        }

    def commit(self, folder: str | Path) -> None:
        """See `Replay.commit`."""
        for name in self._obsolete:
            replay_chunks.remove(Path(folder) / name)
        self._obsolete = []

    def load(self, folder: str | Path, state: dict[str, Any]) -> RowIndex:
        """See `Replay.load`. Fills the store and returns the counters that belong to it."""
        folder = Path(folder)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise UserError(f"{folder}: the replay's state is not of format {FORMAT}: start again without resuming")
        for name, value in self.config.layout().items():
            saved = state["layout"].get(name)
            if saved != value:
                raise UserError(
                    f"{folder}: the replay was saved with {name} {saved}, and this run has {value}: "
                    f"resume with the settings of the saved run"
                )
        chunks = [Chunk.from_json(value) for value in state["chunks"]]
        index = RowIndex(self.config, seed=0)
        index.load_state(state["index"])
        replay_chunks.check_coverage(folder, chunks, index.oldest, index.released)
        for chunk in chunks:
            if chunk.alive(index.oldest):
                for env, start, fields in replay_chunks.read_chunk(
                    folder, chunk, state["run"], self.config.fields(), index.oldest
                ):
                    rows = start + np.arange(len(fields["reward"]))
                    self.store.scatter(self.store.index(index.positions(np.array(env), rows)), fields)
                    index.is_last[env, rows % index.slots] = fields["flags"][:, 1].numpy()
        self._close_cut_episodes(index, state["index"]["newest_is_last"])
        self._run, self._next, self._chunks = state["run"], int(state["next_chunk"]), chunks
        self._folder = folder.resolve() if chunks else None
        replay_chunks.remove_strays(folder, (chunk.file for chunk in chunks))
        return index

    def _close_cut_episodes(self, index: RowIndex, newest_is_last: list[bool]) -> None:
        """Applies the rule of `Replay.append` again: a row may be saved before it turns out to be a last one.

        What came behind the newest row is not on disk: whether that row is a last one says `newest_is_last` (N,).
        """
        flags = self.store.arrays["flags"]
        is_first = flags[:, 0].cpu().numpy()
        for env in range(self.config.num_envs):
            rows = np.arange(index.oldest[env] + 1, index.released[env])
            before = rows[is_first[index.positions(np.array(env), rows)]] - 1
            if newest_is_last[env] and index.released[env] > index.oldest[env]:
                before = np.append(before, index.released[env] - 1)
            index.is_last[env, before % index.slots] = True
            flags[self.store.index(index.positions(np.array(env), before)), 1] = True

    def _rows(self, index: RowIndex, stretches: tuple[Stretch, ...]) -> dict[str, Tensor]:
        """All fields of the stretches, end to end, on the host."""
        positions = [index.positions(np.array(env), np.arange(start, stop)) for env, start, stop in stretches]
        where = self.store.index(np.concatenate(positions))
        return {name: torch.index_select(array, 0, where).cpu() for name, array in self.store.arrays.items()}
