"""tests/README.md's table: every test that it names is there, in the tier that it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TIERS = ("quick", "slow", "drill")
ROW = re.compile(r"^\| (?P<promise>[^|]+) \| (?P<tests>(?:`[^`|]+`,? ?)+) \| (?P<tier>[^|]+) \|$")


def promises() -> list[tuple[str, str, str]]:
    """Promise, test as FILE::FUNCTION or FILE, and tier."""
    rows = filter(None, map(ROW.match, (HERE / "README.md").read_text().splitlines()))
    return [
        (row["promise"], test, row["tier"])
        for row in rows
        for test in re.findall("`([^`]+)`", row["tests"])
        if row["tier"].split()[0].rstrip(",") in TIERS
    ]


def tiers_of(test: str) -> set[str]:
    """Tiers of a function, or of all functions of a file, by the marks in its source."""
    file, _, wanted = test.partition("::")
    tree = ast.parse((HERE / file).read_text())
    of_file = _marks(node.value for node in tree.body if _is_pytestmark(node))
    found = set()
    for node in tree.body:
        is_test = isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if is_test and wanted in ("", node.name):
            found |= (_marks(node.decorator_list) | of_file) or {"quick"}
    return found


def _is_pytestmark(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"


def _marks(nodes) -> set[str]:
    text = " ".join(ast.unparse(node) for node in nodes)
    return {tier for tier in TIERS if re.search(rf"mark\.{tier}\b", text)}


def test_there_are_promises() -> None:
    assert promises()


@pytest.mark.parametrize(("promise", "test", "tier"), promises())
def test_a_promise_is_proven_where_it_is_said(promise: str, test: str, tier: str) -> None:
    found = tiers_of(test)
    assert found, f"{promise}: no such test"
    assert {word for word in TIERS if word in tier} >= found or tier.split()[0] in found
