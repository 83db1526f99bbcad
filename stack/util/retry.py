"""Trying again what may fail for a moment."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from stack.util.errors import UserError

log = logging.getLogger(__name__)

Value = TypeVar("Value")

FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""OS errors that waiting does not mend."""

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0


def retry(
    action: Callable[[], Value],
    name: str,
    *,
    retries: int,
    transient: tuple[type[Exception], ...] = (OSError,),
    final: tuple[type[Exception], ...] = FINAL,
    tell: Callable[[Exception], str] = str,
    sleep: Callable[[float], None] = time.sleep,
) -> Value:
    """The action's value; on a transient error, waits 0.5, 1, 2, ... 30 s and tries again.

    Args:
        name: what is read, for messages. retries: tries after the first.
        transient, final: errors that are worth another try, and among them those that are not.
        tell: an error as text, without what must not be logged.

    Raises:
        UserError: a final error, a full disk, or a transient error after the last try.
    """
    for attempt in range(retries + 1):
        try:
            return action()
        except UserError:
            raise
        except final as error:
            raise UserError(f"{name}: {_reason(error, tell)}") from None
        except transient as error:
            reason = _reason(error, tell)
            if isinstance(error, OSError) and error.errno in _FULL:
                raise UserError(f"{error.filename or name}: {reason}") from None
            if attempt == retries:
                raise UserError(f"{name}: failed {retries + 1} times: {reason}") from None
            wait = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)
            log.warning("%s: %s; trying again in %g s", name, reason, wait)
            sleep(wait)
    raise AssertionError("range(retries + 1) is not empty")


def _reason(error: Exception, tell: Callable[[Exception], str]) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return tell(error) or type(error).__name__
