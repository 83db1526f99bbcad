"""Trying again: how often, how long between, and what is said in the end."""

from __future__ import annotations

import errno
import logging

import pytest

from stack.util.errors import UserError
from stack.util.retry import reason, retry


class Failing:
    """An action that raises an error some times, then returns how often it was called."""

    def __init__(self, error: Exception, times: int = 10**6) -> None:
        self.error, self.times, self.calls, self.waits = error, times, 0, list[float]()

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.calls

    def retried(self, retries: int = 3, **options) -> int:
        return retry(self, "s3://x/0.tar", retries=retries, sleep=self.waits.append, **options)


@pytest.mark.parametrize(
    ("times", "waits"),
    [(0, []), (1, [0.5]), (4, [0.5, 1, 2, 4]), (9, [0.5, 1, 2, 4, 8, 16, 30, 30, 30])],
)
def test_waits_double_up_to_half_a_minute(times, waits):
    action = Failing(OSError("cut"), times)
    assert action.retried(retries=9) == times + 1
    assert action.waits == waits


@pytest.mark.parametrize("retries", [0, 1, 6])
def test_the_last_failure_names_the_file_and_the_count(retries):
    action = Failing(OSError(errno.EIO, "Input/output error", "/dev/x"))
    with pytest.raises(UserError) as caught:
        action.retried(retries)
    assert str(caught.value) == f"s3://x/0.tar: failed {retries + 1} times: Input/output error"
    assert (action.calls, len(action.waits)) == (retries + 1, retries)


def test_years_of_tries_are_waited_for():
    action = Failing(OSError("cut"), 2000)
    assert action.retried(2000) == 2001
    assert set(action.waits[6:]) == {30.0}


AT_ONCE = [
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), "s3://x/0.tar: No such"),
    (PermissionError("not for you"), "s3://x/0.tar: not for you"),
    (IsADirectoryError(errno.EISDIR, "Is a directory"), "s3://x/0.tar: Is a directory"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory"), "s3://x/0.tar: Not a directory"),
    (OSError(errno.ENOSPC, "No space left on device", "/tmp/y"), "/tmp/y: No space left"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "s3://x/0.tar: Disk quota exceeded"),
    (OSError(errno.EROFS, "Read-only file system"), "s3://x/0.tar: Read-only file system"),
    (UserError("said already"), "said already"),
]


@pytest.mark.parametrize(("error", "message"), AT_ONCE)
def test_what_waiting_does_not_mend_is_told_at_once(error, message):
    action = Failing(error)
    with pytest.raises(UserError, match=f"^{message}"):
        action.retried(transient=(Exception,))
    assert (action.calls, action.waits) == (1, [])


@pytest.mark.parametrize("final", [(), (PermissionError,)])
def test_which_errors_are_final_can_be_told(final):
    action = Failing(FileNotFoundError("/x"), 2)
    assert action.retried(final=final) == 3
    with pytest.raises(ZeroDivisionError):
        Failing(ZeroDivisionError()).retried(transient=(OSError, ValueError))


@pytest.mark.parametrize(
    "error", [OSError("?token=SECRET"), OSError(5, "?token=SECRET"), PermissionError("SECRET")]
)
def test_what_must_not_be_told_is_left_out_of_message_and_log(error, caplog):
    with caplog.at_level(logging.INFO), pytest.raises(UserError) as caught:
        Failing(error).retried(tell=lambda error: "no entry")
    assert "SECRET" not in caplog.text + str(caught.value)
    assert str(caught.value).endswith("no entry")


def test_every_wait_is_logged(caplog):
    Failing(OSError("cut"), 2).retried()
    assert caplog.messages == [
        "s3://x/0.tar: cut; trying again in 0.5 s",
        "s3://x/0.tar: cut; trying again in 1 s",
    ]


REASONS = [
    (OSError(errno.EIO, "Input/output error", "/x"), "Input/output error"),
    (ValueError("two\n  lines"), "two lines"),
    (TimeoutError(), "TimeoutError"),
]


@pytest.mark.parametrize(("error", "line"), REASONS)
def test_a_reason_is_one_line(error, line):
    assert reason(error) == line
