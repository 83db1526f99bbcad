"""What errors of other libraries say, in one line."""

from __future__ import annotations

import pytest

from stack.util.errors import reason


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("\n first \n second"), "first "),
        (EOFError(), "EOFError"),
        (NotImplementedError("  \n"), "NotImplementedError"),
    ],
)
def test_one_line_and_never_none(error: Exception, told: str) -> None:
    assert reason(error) == told
