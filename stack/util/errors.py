"""Mistakes that a user can mend, told apart from bugs."""

from __future__ import annotations

import errno

DENIED = (
    *(errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS),
)
"""What the user's disk or folders refuse; any other OSError is a bug."""


class UserError(Exception):
    """A mistake the user can mend: one line that names file, field, value and what to do.

    The command line prints it as ``error: ...`` and exits with status 2; any other exception
    is a bug and keeps its traceback.
    """


class PeerLostError(Exception):
    """Another process of the job is gone or silent; this one can only end, and be started again.

    The command line prints it as ``error: ...`` and exits with status 75 (EX_TEMPFAIL).
    """


def reason(error: BaseException) -> str:
    """What another library's error says, in one line; its kind, if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
