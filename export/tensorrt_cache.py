"""Kernels that TensorRT for RTX compiles when a plan first runs, kept from one process to the next."""

from __future__ import annotations

import contextlib
from typing import Any

from genreward_fast.export.cache import cache_folder
from genreward_fast.export.engine import Manifest
from genreward_fast.files import atomic_path


class KernelCache:
    """The runtime cache of a plan, in a file named after the plan. Does nothing for a TensorRT that has none.

    The library checks the file against GPU, driver and version itself, and compiles anew if it does not fit. It saves
    time only, so a file that cannot be read or written is no error.
    """

    def __init__(self, config: Any, manifest: Manifest) -> None:
        """
        Args:
            config: an IRuntimeConfig; contexts that are made with it afterwards use the cache.
        """
        self._cache = None
        if not hasattr(config, "create_runtime_cache"):
            return
        self._file = cache_folder() / "kernels" / f"{manifest.payload_sha256[:32]}.rtx"
        self._cache = config.create_runtime_cache()
        with contextlib.suppress(OSError):
            self._cache.deserialize(self._file.read_bytes())
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Writes what has been compiled so far."""
        if self._cache is not None:
            with contextlib.suppress(OSError), atomic_path(self._file) as temporary:
                temporary.write_bytes(self._cache.serialize())
