"""Whose a run folder is, and who may write into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stack.config.load import dump_recipe, load_recipe
from stack.train.build_run import Start, open_run
from stack.util.code import code_hash
from stack.util.errors import UserError
from tests.config.minimal import DISTILL, PRETRAIN, write
from tests.pipeline import tree


def recipe(folder: Path, fields: dict[str, Any] = DISTILL, *overrides: str) -> Any:
    path = write(folder / "given.yaml", {**fields, "out": str(folder / "run")})
    return load_recipe(path, overrides)


def occupied(folder: Path) -> Path:
    """A run with something precious in it."""
    run = open_run(given := recipe(folder))
    (run / "checkpoints").mkdir(parents=True)
    (run / "recipe.yaml").write_text(dump_recipe(given))
    (run / "checkpoints" / "precious").write_text("1")
    return run


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}], ids=str)
@pytest.mark.parametrize("there", [False, True], ids=["missing", "empty"])
def test_a_new_run_is_not_claimed_before_it_trains(
    tmp_path: Path, options: dict[str, bool], there: bool
) -> None:
    if there:
        (tmp_path / "run").mkdir()
    assert open_run(recipe(tmp_path), how=Start(**options)) == tmp_path / "run"
    assert not tree(tmp_path / "run")


def test_what_the_launcher_wrote_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "jobs.jsonl").write_text("{}")
    (tmp_path / "run" / ".recipe.yaml.k3q2").write_text("")  # A first start that was killed.
    (tmp_path / "run" / ".nfs0000a1").write_text("")
    (tmp_path / "run" / ".jobs.lock").write_text("")
    assert open_run(recipe(tmp_path), how=Start(resume=True)) == tmp_path / "run"


REFUSED = [
    # overrides of the second start, options, message
    ([], {}, "{run}: holds a run already; give --resume to go on with it, --overwrite"),
    (["seed=1"], {"resume": True}, "{run}/recipe.yaml: seed: the run was started with 0, now 1"),
    (
        ["optim.student.lr=0.5"],
        {"resume": True},
        "{run}/recipe.yaml: optim.student.lr: the run was started with 0.001, now 0.5",
    ),
    (
        ["divergence=fkl", "iterations=99"],
        {"resume": True},
        "{run}/recipe.yaml: divergence: the run was started with 'jensen_shannon', now 'forward",
    ),
]


@pytest.mark.parametrize(("overrides", "options", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_refused_and_untouched(
    tmp_path: Path, overrides: list[str], options: dict[str, bool], message: str
) -> None:
    run = occupied(tmp_path)
    before = tree(run)
    with pytest.raises(UserError) as caught:
        open_run(recipe(tmp_path, DISTILL, *overrides), how=Start(**options))
    assert str(caught.value).startswith(message.format(run=run))
    assert tree(run) == before


def test_another_job_is_refused(tmp_path: Path) -> None:
    run = occupied(tmp_path)
    before = tree(run)
    with pytest.raises(UserError, match=r"recipe\.yaml: job: the run in this folder is of"):
        open_run(recipe(tmp_path, PRETRAIN), how=Start(resume=True))
    assert tree(run) == before


@pytest.mark.parametrize("overrides", [[], ["iterations=99", "log.every=7"]], ids=str)
def test_resume_leaves_all_as_it_is_for_the_trainer_to_load(
    tmp_path: Path, overrides: list[str]
) -> None:
    run = occupied(tmp_path)
    before = tree(run)
    assert open_run(recipe(tmp_path, DISTILL, *overrides), how=Start(resume=True)) == run
    assert tree(run) == before


def test_overwrite(tmp_path: Path) -> None:
    run = occupied(tmp_path)
    open_run(recipe(tmp_path, DISTILL, "seed=1"), how=Start(overwrite=True))
    assert not run.exists()


@pytest.mark.parametrize("kind", ["fork", "init_from"])
@pytest.mark.parametrize("part", ["", "checkpoints/step-0000002"])
def test_overwrite_spares_what_the_run_begins_with(tmp_path: Path, kind: str, part: str) -> None:
    run = occupied(tmp_path)
    before, source = tree(run), run / part
    given = recipe(tmp_path, DISTILL, *([f"init_from={source}"] if kind == "init_from" else []))
    how = Start(overwrite=True, fork=source if kind == "fork" else None)
    with pytest.raises(UserError, match=rf"{kind}: {source}: is in {run}, which --overwrite would"):
        open_run(given, how=how)
    assert tree(run) == before


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_what_is_not_a_run_is_never_touched(tmp_path: Path, options: dict[str, bool]) -> None:
    foreign = tmp_path / "run"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    before = tree(tmp_path / "run")
    with pytest.raises(UserError, match=rf"^{foreign}: .*not a run"):
        open_run(recipe(tmp_path), how=Start(**options))
    assert tree(foreign) == before


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_a_file_in_the_place_of_the_folder(tmp_path: Path, options: dict[str, bool]) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"run: is a file"):
        open_run(recipe(tmp_path), how=Start(**options))
    assert (tmp_path / "run").read_text() == "a file"


def test_code_hash_is_stable() -> None:
    assert code_hash() == code_hash()
    assert len(code_hash()) == 64
