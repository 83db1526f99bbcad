"""A clock for stack.train.pulse that tests set."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from stack.train import pulse


class Clock:
    """Stands still unless told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        told = SimpleNamespace(monotonic=lambda: self.now, time=lambda: 1e9 + self.now)
        monkeypatch.setattr(pulse, "time", told)
