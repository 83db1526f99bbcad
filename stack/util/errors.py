"""Mistakes that a user can mend, told apart from bugs."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend: one line that names file, field, value and what to do.

    The command line prints it as ``error: ...`` and exits with status 2; any other exception
    is a bug and keeps its traceback.
    """


class PeerLostError(Exception):
    """Another process of the job is gone or silent; this one can only end, and be started again.

    The command line prints it as ``error: ...`` and exits with status 75 (EX_TEMPFAIL).
    """
