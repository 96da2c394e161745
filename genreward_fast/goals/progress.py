"""Progress of long work, with its rate and the time left."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress(*args: Any, **kwargs: Any) -> Any:
    """A `tqdm` bar: drawn twice a second on a terminal, every half minute elsewhere, which is kinder to logs."""
    return tqdm(*args, mininterval=0.5 if sys.stderr.isatty() else 30.0, dynamic_ncols=True, **kwargs)
