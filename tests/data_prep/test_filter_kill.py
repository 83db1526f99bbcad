"""`data_prep filter`, killed: the same command again ends with the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.data_prep.coyo_rows import random_table, write

RUN = """
import os, signal, sys
from importlib import import_module
from pathlib import Path
from data_prep.filter import scan, write
from data_prep.filter.run import filter_rows

scan.SPAN, write._GROUP = 500, 30
source, out, other, *victim = sys.argv[1:]
if victim:
    module, name, calls = victim
    owner = import_module(f"data_prep.filter.{module}")
    *inside, name = name.split(".")
    for part in inside:
        owner = getattr(owner, part)
    real, left = getattr(owner, name), int(calls)

    def fatal(*args, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    setattr(owner, name, fatal)
rules = Path(other) if other else None
filter_rows(Path(source), Path(out), rules=rules, rows_per_file=100, overwrite=bool(other))
"""

POINTS = [
    ("scan", "write_json", 2),  # The third span written, but not its counts.
    ("dedupe", "_first", 1),
    ("verdict", "write_json", 0),
    ("write", "fsync", 2),  # The second output file written, but not renamed.
    ("folder", "write_json", 2),  # All but filter.json.
    ("folder", "shutil.rmtree", 1),  # filter.json is there, and .work as well.
]


def run(*words: object) -> int:
    done = subprocess.run([sys.executable, "-c", RUN, *map(str, words)], capture_output=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coyo")
    for number in range(3):
        table = random_table(1000, seed=number, first=1000 * number)
        write(folder / f"{number}.parquet", table, row_group_size=300)
    return folder


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(source, out, "") == 0
    return contents(out)


@pytest.fixture(scope="module")
def wide(source, tmp_path_factory):
    """Other rules, and what they leave."""
    folder = tmp_path_factory.mktemp("wide")
    rules = folder / "rules.yaml"
    rules.write_text("aspect: {max: 2}\n")
    assert run(source, folder / "out", rules) == 0
    return rules, contents(folder / "out")


@pytest.mark.parametrize("point", POINTS, ids=lambda point: "-".join(map(str, point)))
def test_a_killed_run_continues_to_the_same_bytes(source, whole, tmp_path, point):
    out = tmp_path / "out"
    assert run(source, out, "", *point) == -signal.SIGKILL
    assert (out / ".work").is_dir()
    assert run(source, out, "") == 0
    assert contents(out) == whole


@pytest.mark.parametrize("point", [("folder", "write_json", 1), ("folder", "shutil.rmtree", 0)])
def test_a_killed_overwrite_is_not_taken_for_the_old_folder(source, whole, wide, tmp_path, point):
    out, (rules, other) = tmp_path / "out", wide
    out.mkdir()
    for name, data in whole.items():
        (out / name).write_bytes(data)
    assert run(source, out, rules, *point) == -signal.SIGKILL
    assert run(source, out, rules) == 0
    assert contents(out) == other != whole
