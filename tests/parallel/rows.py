"""Rows of a table as parameters of a test."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def rows(names: Iterable[Any], rare: Collection[Any]) -> list[Any]:
    """One parameter a name, or several where it is a tuple; the rare ones are for make drill."""
    return [
        pytest.param(
            *(name if isinstance(name, tuple) else (name,)),
            marks=pytest.mark.drill if name in rare else (),
        )
        for name in names
    ]
