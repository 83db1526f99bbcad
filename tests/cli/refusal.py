"""What a command that must fail says."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack.cli import main
from stack.util import exits


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The only line of a command that must fail."""
    assert main([str(argument) for argument in arguments]) == exits.USER_ERROR
    told = capsys.readouterr()
    [line] = told.err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")
