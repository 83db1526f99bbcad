"""Exit statuses of the command line, which launchers act on, and how a process ends with one."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

USER_ERROR = 2
"""Something to mend: one line says what."""
PEER_LOST = 75
"""A rank is gone, silent or stuck (EX_TEMPFAIL): nothing to mend, start again with --resume."""
STOPPED = 85
"""A signal asked the run to stop; its state is saved and --resume goes on."""
INTERRUPTED = 130
"""Ctrl-C where there was nothing to save; what a shell reports for SIGINT."""


def leave(code: int) -> NoReturn:
    """End the process. All that is to be saved has been; DeepSpeed leaves threads behind that at
    times abort an interpreter which ends in order ("terminate called without an active
    exception"), so that a run which is done would look as if it had crashed."""
    if "deepspeed" in sys.modules:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
