"""Where engines are kept that a run has built for itself."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from genreward_fast.encoders.engine_source import SUFFIX, EngineSource, fidelity_text
from genreward_fast.errors import UserError
from genreward_fast.export.backends import BACKENDS
from genreward_fast.export.machine import cpu_features

Say = Callable[[str], None]


def cache_folder() -> Path:
    """$GENREWARD_CACHE/engines, else $XDG_CACHE_HOME/genreward-fast/engines, else the same below ~/.cache."""
    if own := os.environ.get("GENREWARD_CACHE"):
        return Path(own).expanduser() / "engines"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "genreward-fast" / "engines"


def cached_engines() -> list[Path]:
    """The engine files in the cache."""
    return sorted(cache_folder().glob(f"*/*{SUFFIX}"))


def cached_path(source: EngineSource, backend: str) -> Path:
    """Where the engine of an encoder lies, or would lie.

    Its folder names all that `load_engine` compares and the file's name does not: the backend's version and, where an
    engine holds code for the CPU, that CPU's instructions. So a file that is there is one that fits.

    Raises:
        UserError: the backend's library is not installed.
    """
    entry = BACKENDS[backend]
    folder = f"{backend}-{entry.version()}"
    if entry.has_host_code:
        folder += f"-{hashlib.sha256(' '.join(cpu_features()).encode()).hexdigest()[:8]}"
    return cache_folder() / folder / source.file_name(backend)


def cached_engine(source: EngineSource, backend: str, say: Say) -> Path:
    """The file of an encoder's engine, which is built if it is not there. Of several processes one builds.

    Raises:
        UserError: it cannot be built, or the cache cannot be written.
    """
    path = cached_path(source, backend)
    if path.exists():
        return path
    with _alone_in(path.parent):
        if not path.exists():  # another process may have built it meanwhile
            say(f"engine: building {path.name} (once, it may take minutes)")
            manifest = source.build(path, backend)
            say(f"engine: {path.name} is in {path.parent}, relative RMS error {fidelity_text(manifest)}")
    return path


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which the system releases however the process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be used for engines ({error.strerror}); name a folder with GENREWARD_CACHE"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
