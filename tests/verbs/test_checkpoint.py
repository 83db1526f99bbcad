"""What a run has saved is listed, verified and pruned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stack.checkpoint import folders
from stack.cli import main
from tests.checkpoint.samples import flip, names, save
from tests.cli.refusal import refused
from tests.config.minimal import DISTILL, write
from tests.pipeline import tree

SCORES = {2: None, 4: 0.25, 6: 7.5, 8: 3.0}


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def new_run(folder: Path) -> Path:
    """A run that has saved nothing."""
    folder.mkdir()
    write(folder / "recipe.yaml", DISTILL)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints 2 and 4, and 6 and 8 of a run that went on from 4."""
    run = new_run(tmp_path / "run")
    root = run / "checkpoints"
    for step in (2, 4, 9):
        save(root, step, score=SCORES.get(step))
    folders.set_aside(root, 4)
    for step in (6, 8):
        save(root, step, score=SCORES[step])
    return run


def steps(run: Path) -> list[int]:
    return [folders.step_of(folder) for folder in folders.committed(run / "checkpoints")]


def aside(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("before-*"))


def test_ls(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(run)
    file = tmp_path / "rows.json"
    assert main(["checkpoint", "ls", str(run), "--json", str(file)]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    assert all(f"step-000000{step}" in told for step in SCORES)
    assert "7.5" in told
    rows = json.loads(file.read_text())
    assert [(row["step"], row["score"]) for row in rows] == [(9, None), *SCORES.items()]
    found = [Path(row["folder"]) for row in rows]
    [old] = aside(run)
    assert found == [old / "step-0000009", *folders.committed(run / "checkpoints")]
    sizes = [sum(f.stat().st_size for f in folder.iterdir()) for folder in found]
    assert [row["bytes"] for row in rows] == sizes
    assert tree(run) == before


@pytest.mark.parametrize("where", ["checkpoints/step-0000004", "checkpoints/before-*/step-*"])
def test_verify(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str) -> None:
    """Status 0 where all are whole, 1 where one is not, with what is wrong."""
    file = tmp_path / "rows.json"
    assert main(["checkpoint", "verify", str(run)]) == 0
    assert capsys.readouterr().out.count("whole") == 5
    [damaged] = run.glob(where)
    flip(damaged / "__0_0.distcp")
    assert main(["checkpoint", "verify", str(run), "--json", str(file)]) == 1
    told = capsys.readouterr().out
    assert told.count("whole") == 4
    assert max(map(len, told.splitlines())) <= 80
    faults = {row["folder"]: row["fault"] for row in json.loads(file.read_text())}
    assert faults.pop(str(damaged)) == "__0_0.distcp does not match its SHA-256"
    assert set(faults.values()) == {None}


PRUNES = [
    # options, steps that stay
    ([], [4, 6, 8]),
    (["--keep-last", "1"], [4, 8]),
    (["--keep-last", "1", "--keep-best", "2"], [4, 8]),
    (["--keep-last", "1", "--keep-best", "3"], [4, 6, 8]),
    (["--keep-last", "1", "--keep-every", "3"], [4, 6, 8]),
    (["--keep-last", "9"], [2, 4, 6, 8]),
]


@pytest.mark.parametrize(("options", "left"), PRUNES, ids=str)
def test_prune(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], left: list[int]
) -> None:
    """A dry run says the same and removes nothing."""
    before, old = tree(run), aside(run)
    kept = {f"checkpoints/step-000000{step}" for step in left}
    assert main(["checkpoint", "prune", str(run), "--dry-run", *options]) == 0
    foretold = capsys.readouterr().out
    gone = [run / "checkpoints" / f"step-000000{step}" for step in SCORES if step not in left]
    assert foretold.splitlines() == [f"would remove {folder}" for folder in (*gone, *old)]
    assert tree(run) == before
    assert main(["checkpoint", "prune", str(run), *options]) == 0
    assert capsys.readouterr().out == foretold.replace("would remove", "removed")
    assert names(run / "checkpoints") == [f"step-000000{step}" for step in left]
    rest = {name: file for name, file in before.items() if str(Path(name).parent) in kept}
    assert tree(run / "checkpoints") == {
        name.removeprefix("checkpoints/"): file for name, file in rest.items()
    }
    assert main(["checkpoint", "prune", str(run), *options]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_prune_keeps_by_itself_what_the_recipe_keeps(run: Path) -> None:
    keep = {"checkpoint": {"keep_last": 2, "keep_every": 4, "keep_best": 0}}
    write(run / "recipe.yaml", DISTILL | keep)
    assert main(["checkpoint", "prune", str(run)]) == 0
    assert steps(run) == [4, 6, 8]


def test_prune_never_removes_the_newest_whole_one(run: Path) -> None:
    for step in (6, 8):
        flip(folders.step_folder(run / "checkpoints", step) / "state.json")
    (folders.step_folder(run / "checkpoints", 4) / "COMMIT.json").unlink()
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1"]) == 0
    assert {2, 8} <= set(steps(run))


def test_prune_where_nothing_is_whole_removes_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in SCORES:
        flip(folders.step_folder(run / "checkpoints", step) / "state.json")
    before = tree(run)
    assert "no checkpoint verifies" in refused(capsys, "checkpoint", "prune", run)
    assert tree(run) == before


@pytest.mark.parametrize("part", ["ls", "verify", "prune"])
def test_nothing_to_look_at(tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str) -> None:
    """Not a run, and a run that has saved nothing yet."""
    folder = tmp_path / "run"
    assert refused(capsys, "checkpoint", part, folder).startswith(f"{folder}: recipe.yaml: missing")
    new_run(folder)
    assert refused(capsys, "checkpoint", part, folder) == f"{folder}: checkpoints/: none yet"
