"""Exit statuses of the command line, which launchers act on."""

from __future__ import annotations

USER_ERROR = 2
"""Something to mend: one line says what."""
PEER_LOST = 75
"""A rank is gone, silent or stuck (EX_TEMPFAIL): nothing to mend, start again with --resume."""
STOPPED = 85
"""A signal asked the run to stop; its state is saved and --resume goes on."""
INTERRUPTED = 130
"""Ctrl-C where there was nothing to save; what a shell reports for SIGINT."""
