"""Where engines are kept that a run has built for itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from genreward_fast.encoders.engine_source import SUFFIX, EngineSource, fidelity_text
from genreward_fast.errors import UserError
from genreward_fast.export.backends import BACKENDS
from genreward_fast.export.cache import cache_folder
from genreward_fast.export.machine import cpu_features

Say = Callable[[str], None]


def engine_folder() -> Path:
    """`engines` in the cache."""
    return cache_folder() / "engines"


def cached_engines() -> list[Path]:
    """The engine files in the cache."""
    return sorted(engine_folder().glob(f"*/*{SUFFIX}"))


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
    return engine_folder() / folder / source.file_name(backend)


def cached_engine(source: EngineSource, backend: str, say: Say) -> Path:
    """The file of an encoder's engine, which is built if it is not there. Of several processes one builds, and
    the others wait.

    Raises:
        UserError: it cannot be built, or the cache cannot be written.
    """
    path = cached_path(source, backend)
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be used for engines ({error.strerror}); name a folder with GENREWARD_CACHE"
        ) from None
    say(f"engine: building {path.name} (once, it may take minutes)")
    manifest = source.build(path, backend, keep=True)  # another process may just have built it
    say(f"engine: {path.name} is in {path.parent}, relative RMS error {fidelity_text(manifest)}")
    return path
