"""The house rules that can be read off the source: who imports whom, and how long things are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("stack/**/*.py"), *ROOT.glob("data_prep/**/*.py")])
TESTS = sorted(ROOT.glob("tests/**/*.py"))

LEVELS = (
    {"__main__"},
    {"cli"},
    {"arguments"},
    {"verbs"},
    {"train"},
    {"report", "evaluate"},
    {"sample"},
    {"fdistill", "nets", "data", "parallel", "checkpoint"},
    {"diffusion", "config"},
    {"util"},
)
"""Imports point down only; rooms of one level do not import each other."""
HEIGHT = {room: -depth for depth, rooms in enumerate(LEVELS) for room in rooms}

DATA_PREP_MAY_IMPORT = {"data", "nets", "util"}
READS_THE_RECIPE = {"config", "verbs", "arguments", "train/build"}
"""Everyone else takes plain arguments. train/build stands for every train/build*.py."""
HEAVY = {"accelerate", "diffusers", "matplotlib", "numpy", "pydantic", "sklearn", "torch"}
HEAVY |= {"transformers", "yaml"}

COMMAND_LINES = [
    ROOT / "stack/cli.py",
    ROOT / "data_prep/cli.py",
    *ROOT.glob("stack/arguments/*.py"),
]
LONGEST_FILE, LONGEST_LINE, LONGEST_FUNCTION = 320, 100, 60


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Modules that a file imports, as dotted names; ``from a import b`` counts as a.b."""
    tree = parsed(path)
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms(path: Path) -> set[str]:
    """Rooms of stack that a file imports from."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("stack.")}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "stack").with_suffix("").parts[0]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def in_stack() -> list[Path]:
    return [path for path in SOURCES if path.is_relative_to(ROOT / "stack")]


def test_every_room_has_its_place() -> None:
    assert {room_of(path) for path in in_stack()} - {"__init__"} == set(HEIGHT)


@pytest.mark.parametrize("path", in_stack(), ids=name)
def test_imports_point_down(path: Path) -> None:
    here = room_of(path)
    if here == "__init__":
        assert not rooms(path)
        return
    wrong = {room for room in rooms(path) - {here} if HEIGHT[room] >= HEIGHT[here]}
    assert not wrong


@pytest.mark.parametrize("path", sorted(ROOT.glob("data_prep/**/*.py")), ids=name)
def test_data_prep_knows_the_shards_and_the_networks_only(path: Path) -> None:
    assert rooms(path) <= DATA_PREP_MAY_IMPORT


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_stack_does_not_know_data_prep(path: Path) -> None:
    if path.is_relative_to(ROOT / "stack"):
        assert not [module for module in imports(path) if module.startswith("data_prep")]


@pytest.mark.parametrize("path", in_stack(), ids=name)
def test_only_composition_reads_the_recipe(path: Path) -> None:
    reader = room_of(path) in READS_THE_RECIPE or name(path).startswith("stack/train/build")
    assert reader or "config" not in rooms(path)


@pytest.mark.parametrize("path", COMMAND_LINES, ids=name)
def test_a_command_line_starts_without_heavy_imports(path: Path) -> None:
    assert not {module.split(".")[0] for module in imports(path, top_only=True)} & HEAVY


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name)
def test_lengths(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= LONGEST_FILE
    assert not [number for number, line in enumerate(lines, 1) if len(line) > LONGEST_LINE]
    functions = (n for n in ast.walk(parsed(path)) if isinstance(n, ast.FunctionDef))
    sizes = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions}
    assert not {name for name, size in sizes.items() if size > LONGEST_FUNCTION}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_error_is_swallowed(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
            body = [part for part in node.body if not _says_nothing(part)]
            assert body, f"line {node.lineno} swallows an error"


def _says_nothing(node: ast.stmt) -> bool:
    """pass, ... or a docstring."""
    return isinstance(node, ast.Pass) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(parsed(path))
