"""`python -m genreward_fast.training.sweep.launch PARENT COMMAND…`: becomes COMMAND, and gets SIGTERM if PARENT dies.

So nothing goes on training when the process that watches a trial is gone, whatever became of it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def main(parent: int, command: list[str]) -> None:
    """Does not return: the process goes on as `command`."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before it could be watched
        sys.exit(128 + signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # Ray's processes block signals, which is inherited
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
