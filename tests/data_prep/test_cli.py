"""The command line: quick help, one-line errors, exit status 2 for a user's mistake."""

from __future__ import annotations

import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.cli import build_parser, main

VERBS = (
    *("filter", "download", "import", "shards", "digits", "cifar10", "imagenet64"),
    *("latents", "captions", "merge", "stats", "verify", "forget", "bench"),
)
HEAVY = ("torch", "numpy", "pyarrow", "diffusers", "transformers", "sklearn", "PIL", "pydantic")


def test_help_imports_nothing_heavy():
    code = f"""
import sys
from data_prep.cli import main
try:
    main(["--help"])
except SystemExit as stop:
    assert stop.code == 0
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for verb in VERBS:
        assert re.search(rf"\n    {verb}\s", done.stdout)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_explains_its_arguments(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) > 8
    assert "None" not in text


def test_the_verbs_are_those_tested_here():
    choices = next(a.choices for a in build_parser()._actions if a.choices)
    assert set(choices) == set(VERBS)


def garbage(folder):
    (folder / "in").write_bytes(b"PAR1 no PAR1")


def table(**columns):
    return lambda folder: pq.write_table(pa.table(columns), folder / "in")


MISTAKES = [
    (["shards", "in", "out"], lambda folder: None, "in: no such file"),
    (["shards", "in", "out"], garbage, "in: not a parquet file"),
    (["shards", "in", "out"], table(image=[b"x"]), "in: text: no such column"),
    (["shards", "in", "out"], table(text=["x"]), "in: image: no such column"),
    (["shards", "in", "out"], table(image=["x"], text=["x"]), "in: image: must be bytes"),
    (["shards", "in", "out"], table(image=[b"x"], text=["x"]), "out: samples: none left"),
    (["digits", "in"], garbage, "in: is not a folder"),
    (["digits", "out", "--resolution", "4"], garbage, "--resolution: must be at least 8"),
    (["latents", "in", "out", "--vae", "x"], garbage, "in: no such folder of shards"),
    (["captions", "in", "out", "--tokenizer", "x"], garbage, "in: no such folder of shards"),
    (["import", "in"], lambda folder: (folder / "in").mkdir(), "in: no .tar files in it"),
    (["verify", "in"], lambda folder: (folder / "in").mkdir(), "in/manifest.json: missing"),
]


@pytest.mark.parametrize(("words", "make", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_status_2(tmp_path, monkeypatch, run, words, make, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    status, _, error = run(*words)
    assert status == 2
    assert error.splitlines()[-1].startswith(f"error: {message}")


@pytest.mark.parametrize(
    "words",
    [["digits", "out", "--seed", "-1"], ["shards", "a", "b", "--samples-per-shard", "0"], []],
)
def test_mistyped_commands_exit_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err
