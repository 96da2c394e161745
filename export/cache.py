"""Where everything is kept that was made on this machine, and may be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$GENREWARD_CACHE, else genreward-fast in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("GENREWARD_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genreward-fast"
