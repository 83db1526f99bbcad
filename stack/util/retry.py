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
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""OS errors that waiting does not mend."""

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0


def reason(error: BaseException) -> str:
    """An error as one line."""
    told = isinstance(error, OSError) and error.strerror
    return " ".join(str(told or error).split()) or type(error).__name__


def retry(
    action: Callable[[], Value],
    name: str,
    *,
    retries: int,
    transient: tuple[type[Exception], ...] = (OSError,),
    final: tuple[type[Exception], ...] = FINAL,
    tell: Callable[[Exception], str] = reason,
    sleep: Callable[[float], None] = time.sleep,
) -> Value:
    """The action's value; on a transient error, waits 0.5, 1, 2, ... 30 s and tries again.

    Args:
        name: what is read, for messages. retries: tries after the first.
        transient, final: errors that are worth another try, and among them those that are not.
        tell: an error as one line, without what must not be logged.

    Raises:
        UserError: a final error, a full disk, or a transient error after the last try.
    """
    wait = _FIRST_WAIT
    for attempt in range(retries + 1):
        try:
            return action()
        except UserError:
            raise
        except final as error:
            raise UserError(f"{name}: {tell(error)}") from None
        except transient as error:
            told = tell(error)
            if isinstance(error, OSError) and error.errno in FULL:
                raise UserError(f"{error.filename or name}: {told}") from None
            if attempt == retries:
                raise UserError(f"{name}: failed {retries + 1} times: {told}") from None
            log.warning("%s: %s; trying again in %g s", name, told, wait)
            sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
    raise AssertionError("range(retries + 1) is not empty")
