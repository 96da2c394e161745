"""One builder an engine file at a time."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def only_builder(path: Path) -> Iterator[bool]:
    """Holds the lock of the engine file `path`; gives whether another process or thread had it, and was waited for.

    The lock is the operating system's, on a hidden file beside the engine: it ends with the process that holds it,
    however that ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file)
    waited = False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waited = True
        print(f"{path}: another process is building this engine; waiting for it", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield waited
    finally:
        file.unlink(missing_ok=True)  # by its owner; who waits for it sees that it is gone, and makes another
        lock.release()
