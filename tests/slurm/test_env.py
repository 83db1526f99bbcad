"""What slurm/env.sh and the scripts make of their variables, their arguments and the ends of ranks,
in bash alone, without Slurm."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from data_prep.cli import main as data_prep
from tests.forked import ROOT
from tests.slurm import stubs
from tests.slurm.interpreter import interpreter
from tests.slurm.job import TOY, rows

if TYPE_CHECKING:  # Nobody here waits for the libraries but who makes latents.
    from tests.pipeline import World

SAYING = "print([os.environ['MASTER_PORT'], *command])"
TELLING = """\
with open(f"{folder}/commands", "a") as file:
    print(command, file=file)
"""


@dataclass(frozen=True)
class Case:
    """A job, and how it ends: its status, how often it has been put back, words of its output, and
    its notes: status of an end, and whether the job is put back then.

    Args:
        rank, noting: see `interpreter`. env: variables; {folder} is a folder of the test's own.
    """

    script: str
    status: int
    says: str
    arguments: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    rank: str = ""
    noting: str = ""
    restarts: int = 0
    ends: Sequence[tuple[int, bool]] = ()


GAPS = {f"SLURM_ARRAY_{name}": n for name, n in (("TASK_ID", "1"), ("TASK_MAX", "3"))}
GAPS |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_COUNT": "2", "PARTS": "", "ROWS": "slurm"}
FAILING_FOR_A_WHILE = """\
if part == "begin" and not restart:
    sys.exit(1)
if part == "end" and not os.path.exists(f"{folder}/tried"):
    open(f"{folder}/tried", "w").close()
    sys.exit(1)
"""
MISTAKE = 'print("error: x: no such teacher", file=sys.stderr)\nsys.exit(2)'

CASES = {
    "submitted from elsewhere": Case(
        "coyo_js",
        2,
        "error: ROOT: not the repository; submit from there, or set ROOT",
        env={"ROOT": "{folder}"},
    ),
    "without an environment": Case(
        "coyo_js", 2, "error: VENV: /nowhere: no bin/python", env={"VENV": "/nowhere"}
    ),
    "without its recipe": Case(
        "doctor", 2, "error: RECIPE: /nowhere.yaml: no such file", env={"RECIPE": "/nowhere.yaml"}
    ),
    "an option that would be repeated": Case(
        "coyo_js",
        2,
        "error: --step: not field=value, and every start would do it again",
        ["seed=1", "--step", "4"],
    ),
    "an array with gaps, without its size": Case(
        "coyo_download", 2, "error: PARTS: unset, and the array is not 0 to PARTS - 1", env=GAPS
    ),
    "a mistake": Case("coyo_js", 2, "error: x: no such teacher", rank=MISTAKE, ends=[(2, False)]),
    "in circles": Case(
        "imagenet64_js",
        9,
        "3 starts without progress (MAX_CRASHES)",
        rank="sys.exit(9)",
        restarts=2,
        ends=[(9, True), (9, True), (9, False)],
    ),
    "what cannot be noted": Case(
        "cifar10_fkl",
        1,
        f"error: job {stubs.JOB}: has begun anew 1 times (MAX_STOPS); submit it again",
        env={"MAX_STOPS": "1"},
        noting="sys.exit(1)",
        restarts=1,
    ),
    "what cannot be noted for a while": Case(
        "coyo_rkl", 0, "finished", noting=FAILING_FOR_A_WHILE, restarts=1, ends=[(0, False)]
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_job(name: str, tmp_path: Path) -> None:
    case, run = CASES[name], tmp_path / "run"
    settings = {"VENV": str(interpreter(tmp_path, case.rank, case.noting)), "RECIPE": TOY}
    given = {key: value.format(folder=tmp_path) for key, value in case.env.items()}
    settings |= {"OUT": str(run), **given}
    done = stubs.submit(case.script, tmp_path, *case.arguments, **settings)
    assert case.says in done.said
    assert (done.status, done.restarts) == (case.status, case.restarts), done.said
    ends = rows(run / "jobs.jsonl", "end")
    assert [(row["status"], row["requeue"]) for row in ends] == [*case.ends]
    assert len(rows(run / "jobs.jsonl", "begin")) == len(case.ends)


FIELDS = {
    # what: the job's number, variables, arguments, and what the ranks' port and fields are then
    "data with braces": (
        "7654",
        {"DATA": "/data/{a,b}/*"},
        [],
        "27654",
        {"data.folders": ["/data/{a,b}/*"]},
    ),
    "data with all that YAML heeds": (
        "12003",
        {"DATA": "/it's, or: [not] #1"},
        [],
        "20003",
        {"data.folders": ["/it's, or: [not] #1"]},
    ),
    "a teacher, and fields": (
        "24000",
        {"TEACHER": "/a teacher"},
        ["seed=1", "optim.student.lr=0.1"],
        "20000",
        {"teacher.path": "/a teacher", "seed": 1, "optim.student.lr": 0.1},
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_what_ranks_are_told(name: str, tmp_path: Path) -> None:
    job, given, arguments, port, fields = FIELDS[name]
    run, settings = tmp_path / "run", {"VENV": str(interpreter(tmp_path, SAYING)), "RECIPE": TOY}
    settings |= {"OUT": str(run), "SLURM_JOB_ID": job, "MASTER_PORT": "", **given}
    done = stubs.submit("coyo_js", tmp_path, *arguments, **settings)
    assert done.status == 0, done.said
    for rank in (0, 1):
        said = (run / "logs" / f"{job}-0" / f"rank-{rank}.log").read_text()
        *command, resume = ast.literal_eval(said)
        assert command[:5] == [port, "-m", "stack", "distill", TOY]
        assert resume == "--resume"
        told = dict(field.split("=", 1) for field in command[5:])
        assert {name: yaml.safe_load(value) for name, value in told.items()} == {
            **fields,
            "out": str(run),
        }


ARRAYS = {
    # the array's tasks, PARTS, and the folders that are made
    "more folders than tasks": (["0", "1"], "", "abc"),
    "one task of two alone": (["1"], "2", "b"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_latents_of_several_folders(name: str, world: World, tmp_path: Path) -> None:
    tasks, parts, made = ARRAYS[name]
    for folder in ("a", "b", "c"):
        shutil.copytree(world.shards, tmp_path / "shards" / folder)
    settings = {"VENV": str(interpreter(tmp_path, TELLING)), "TEACHER": str(world.teacher)}
    settings |= {"SHARDS": f"{tmp_path}/shards", "DATA": f"{tmp_path}/latents", "DEVICE": "cpu"}
    array = {"JOB_ID": "7", "TASK_MAX": tasks[-1], "TASK_COUNT": str(len(tasks))}
    settings |= {f"SLURM_ARRAY_{key}": value for key, value in array.items()}
    for task in tasks:
        ids = {"SLURM_ARRAY_TASK_ID": task, "PARTS": parts}
        assert stubs.submit("coyo_latents", tmp_path, **settings, **ids).status == 0
    for line in (tmp_path / "commands").read_text().splitlines():
        _, module, *arguments = ast.literal_eval(line)
        assert module == "data_prep"
        assert data_prep(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "latents").iterdir()) == list(made)


@pytest.mark.parametrize("script", sorted((ROOT / "slurm").glob("*.sbatch")), ids=lambda s: s.name)
def test_outside_of_slurm(script: Path, tmp_path: Path) -> None:
    done = stubs.submit(script.stem, tmp_path, SLURM_JOB_ID="")
    assert (done.status, done.said) == (2, "error: no Slurm job; submit with sbatch\n")
