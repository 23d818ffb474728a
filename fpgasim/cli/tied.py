"""`python -m fpgasim.cli.tied PID …`: the command `fpgasim …`, which ends with its parent, the process PID.

It ties itself, so that the parent need not fork to do so: a parent with threads must not. The kernel's PR_SET_PDEATHSIG
would not do, since it takes the end of the thread that has started this for that of the parent.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading

from fpgasim.cli import main


def tie(parent: int) -> None:
    """Has this process get SIGTERM when its parent ends, even if that is killed; ends it if that has happened."""
    try:
        descriptor = os.pidfd_open(parent)
    except ProcessLookupError:
        sys.exit(1)
    if os.getppid() != parent:  # another has its number by now
        sys.exit(1)

    def follow() -> None:
        select.select([descriptor], [], [])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()


if __name__ == "__main__":
    tie(int(sys.argv.pop(1)))
    main(prog_name="fpgasim")
