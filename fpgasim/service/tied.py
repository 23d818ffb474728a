"""`python -m fpgasim.service.tied PID …`: the command `fpgasim …`, which ends with its parent, the process PID.

It ties itself, so that the parent need not fork to do so: a parent with threads must not.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from fpgasim.cli import main

_PR_SET_PDEATHSIG = 1


def tie(parent: int) -> None:
    """Has the kernel end this process by SIGTERM when its parent ends, even if that is killed; ends if it has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    tie(int(sys.argv.pop(1)))
    main(prog_name="fpgasim")
