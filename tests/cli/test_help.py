"""Help: on every verb, narrow enough for a terminal, and without waiting for torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from stack.arguments import VERBS
from stack.cli import main
from tests.forked import ROOT

HEAVY = {"torch", "diffusers", "transformers", "sklearn", "matplotlib", "numpy", "pyarrow"}
LIGHT_COMMANDS = [
    ["--help"],
    *([verb, "--help"] for verb in VERBS),
    ["show-config", "recipes/digits_js.yaml"],
    ["distill", "nowhere.yaml"],
    ["distill", "recipes/digits_js.yaml", "guidence=2"],
]
PROGRAM = """
import contextlib, io, json, sys
from stack.cli import main
seen = []
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        with contextlib.suppress(SystemExit):
            main(command)
    modules = {name.partition(".")[0] for name in sys.modules}
    seen.append([out.getvalue(), sorted(modules & set(json.loads(sys.argv[2])))])
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def told() -> list[tuple[str, list[str]]]:
    """Text of every light command, and the heavy modules loaded by then."""
    arguments = [json.dumps(LIGHT_COMMANDS), json.dumps(sorted(HEAVY))]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        env=environment,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "number", range(len(LIGHT_COMMANDS)), ids=lambda n: " ".join(LIGHT_COMMANDS[n])
)
def test_light_command(told: list[tuple[str, list[str]]], number: int) -> None:
    text, heavy = told[number]
    assert text
    assert heavy == []
    if "--help" in LIGHT_COMMANDS[number]:
        assert max(map(len, text.splitlines())) < 80


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_worth_reading(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A description of several words, and one for every argument."""
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert " ".join(VERBS[verb][1].split()[:6]) in " ".join(text.split())
    for line in text.splitlines():
        if line.startswith("  --") and not line.startswith("  -h"):
            assert "  " in line.strip() or text.split(line)[1].startswith("\n      "), line


def test_the_list_of_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for verb, (line, _, _) in VERBS.items():
        assert f"{verb} {line}" in text


BAD_ARGUMENTS: list[tuple[list[str], str]] = [
    ([], "the following arguments are required: VERB"),
    (["distil", "x.yaml"], "invalid choice: 'distil'"),
    (["distill"], "the following arguments are required: recipe"),
    (["distill", "x.yaml", "--resume", "--overwrite"], "not allowed with argument"),
    (["distill", "x.yaml", "--resmue"], "unrecognized arguments: --resmue"),
    (["export", "runs/x", "runs/y"], "unrecognized arguments: runs/y"),
    (["evaluate", "runs/x", "--samples", "0"], "'0' is not a positive whole number"),
    (["evaluate", "runs/x", "--samples", "many"], "'many' is not a positive whole number"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS, ids=lambda value: str(value))
def test_bad_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    told = capsys.readouterr()
    assert message in told.err
    assert told.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["recipes/digits_js.yaml", "seed=3", "log.every=7"],
        ["recipes/digits_js.yaml", "seed=3", "--resume", "log.every=7"],
        ["--resume", "recipes/digits_js.yaml", "seed=3", "log.every=7"],
        ["recipes/digits_js.yaml", "--resume", "seed=3", "log.every=7"],
    ],
    ids=" ".join,
)
def test_overrides_before_and_behind_options(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        "stack.arguments.training.load", lambda args, job: seen.append(args) or 1 / 0
    )
    monkeypatch.chdir(ROOT)
    with pytest.raises(ZeroDivisionError):
        main(["distill", *arguments])
    assert str(seen[0].recipe) == "recipes/digits_js.yaml"
    assert seen[0].overrides == ["seed=3", "log.every=7"]
    assert seen[0].resume == ("--resume" in arguments)
