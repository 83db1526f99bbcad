"""Starts and ends of runs: killed, torn, crashed before training, of several trainings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from stack.report.journal import (
    CANCELLED,
    KILLED,
    Attempt,
    attempts,
    heartbeat,
    note_job,
    read_rows,
)
from stack.util.errors import UserError
from tests.report.journals import (
    beat,
    begin,
    end,
    ended,
    killed_twice,
    lines,
    row,
    start,
    write_run,
)

ROWS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "whole": ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
    "no end of line": ('{"a": 1}\n{"a": 2}', [{"a": 1}, {"a": 2}]),
    "torn at the end": ('{"a": 1}\n{"a": 2, "b', [{"a": 1}]),
    "torn, then a start": (
        '{"a": 1, "b{"event": "resume"}\n{"a": 2}',
        [{"event": "resume"}, {"a": 2}],
    ),
    "a whole one, then a start": ('{"a": 1}{"a": 2}\n', [{"a": 2}]),
    "torn at a number": ('{"a": 1}\n{"a": 25', [{"a": 1}]),
    "zeros of a file system": ('{"a": 1}\n\0\0\0\0\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
    "empty lines": ('\n{"a": 1}\n\n', [{"a": 1}]),
    "nothing": ("", []),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_can_be_read(name: str, tmp_path: Path) -> None:
    text, rows = ROWS[name]
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    assert list(read_rows(file)) == rows


def test_tables_can_be_left_out(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    table = '"levels/h": [[1, 2.5, null], [3, 4, 5]], "levels/log_snr": [], '
    whole = f'{{"step": 1, "a": [1], {table}"b": "]", "levels/r_bounds": [-2, 3]}}'
    torn = '{"step": 2, "levels/h": [[1, 2], [{"event": "resume"}'
    file.write_text(f"{whole}\n{torn}\n")
    found = list(read_rows(file, tables=False))
    assert found == [{"step": 1, "a": [1], "b": "]"}, {"event": "resume"}]
    [first, second] = read_rows(file)
    assert (first["levels/h"][1], second) == ([3, 4, 5], {"event": "resume"})


def test_bytes_that_are_no_text_spoil_their_line_only(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": \xff\xfe\n{"a": 3}\n')
    assert list(read_rows(file)) == [{"a": 1}, {"a": 3}]
    assert list(read_rows(tmp_path / "none.jsonl")) == []


def test_killed_twice(tmp_path: Path) -> None:
    """A job's begin is where its attempt begins; heartbeats reach beyond the last row."""
    gone = "status 75: a rank was gone"
    assert attempts(killed_twice(tmp_path)) == [
        Attempt(1000, 1290.0, 0, 25, (0.0, 250.0), KILLED),
        Attempt(1500, 1710, 20, 36, (200.0, 360.0), gone, queued=True),
        Attempt(2000, 2190.0, 30, 44, (300.0, 440.0)),
    ]


def one(wall: float = 100, **fields: Any) -> Attempt:
    """What each of these logs begins with: 10 iterations in 50 s from second 100 on."""
    return Attempt(**({"began": wall, "last": 150.0, "step": 0, "reached": 10} | fields))


LOG = [start(100), row(10, 50.0)]
TIMES = (0.0, 50.0)
CASES: dict[str, tuple[dict[str, Any], list[Attempt]]] = {
    "nothing": ({}, []),
    "an empty log": ({"log": []}, []),
    "going on": ({"log": LOG}, [one(seconds=TIMES)]),
    "finished": (
        {"log": [*LOG, ended("finished", 12, 60.0)]},
        [one(last=160.0, reached=12, seconds=(0, 60.0), ended="finished", finished=True)],
    ),
    "stopped": (
        {"log": [*LOG, ended("stopped", 11, 55.0, "SIGTERM")]},
        [one(last=155.0, reached=11, seconds=(0, 55.0), ended="SIGTERM")],
    ),
    "failed": (
        {"log": [*LOG, ended("failed", 11, 55.0, "no disk")]},
        [one(last=155.0, reached=11, seconds=(0, 55.0), ended="no disk", failed=True)],
    ),
    "a row whose time is rounded below that of the event": (
        {"log": [start(100, time=0.0004), row(1, 0.0)]},
        [one(last=100, reached=1, seconds=(0.0004, 0.0004))],
    ),
    "a heartbeat after the last row": (
        {"log": LOG, "last": beat(13, 170.0)},
        [one(last=170.0, reached=13, seconds=(0.0, 70.0))],
    ),
    "a heartbeat before the last row": (
        {"log": LOG, "last": beat(8, 140.0)},
        [one(seconds=TIMES)],
    ),
    "a heartbeat of before, as the second start is not there yet": (
        {"log": [*LOG, start(300, step=5, time=25.0)], "last": beat(13, 170.0)},
        [
            one(last=170.0, reached=13, seconds=(0.0, 70.0), ended=KILLED),
            one(300, last=300, step=5, reached=5, seconds=(25.0, 25.0)),
        ],
    ),
    "stopped by its job": (
        {
            "log": [*LOG, ended("stopped", 10, 50.0, "SIGUSR1")],
            "jobs": [begin(90), end(155, 85, "stopped by a signal", again=True)],
        },
        [one(90, last=155, seconds=TIMES, ended="SIGUSR1", queued=True)],
    ),
    "stopped too often": (
        {
            "log": [*LOG, ended("stopped", 10, 50.0, "SIGUSR1")],
            "jobs": [begin(90), end(155, 85, "stopped by a signal 21 times")],
        },
        [one(90, last=155, seconds=TIMES, ended="SIGUSR1; stopped by a signal 21 times")],
    ),
    "cancelled before it could say so": (
        {"log": LOG, "jobs": [begin(90), end(155, 137, CANCELLED)]},
        [one(90, last=155, seconds=TIMES, ended=CANCELLED)],
    ),
    "killed for the last time": (
        {"log": LOG, "jobs": [begin(90), end(155, 137, "status 137")]},
        [one(90, last=155, seconds=TIMES, ended="status 137", failed=True)],
    ),
    "finished, and its job was unhappy all the same": (
        {
            "log": [*LOG, ended("finished", 10, 50.0)],
            "jobs": [begin(90), end(155, 1, "status 1", again=True)],
        },
        [one(90, last=155, seconds=TIMES, ended="finished", finished=True, queued=True)],
    ),
    "a job that crashed before training": (
        {"jobs": [begin(90), end(95, 2, "an error to mend")]},
        [Attempt(90, 95, ended="an error to mend", failed=True)],
    ),
    "a job that found nothing to do": (
        {
            "log": [*LOG, ended("finished", 10, 50.0)],
            "jobs": [begin(90), end(155, 0, "finished"), begin(200), end(220, 0, "finished")],
        },
        [
            one(90, last=155, seconds=TIMES, ended="finished", finished=True),
            Attempt(200, 220, ended="finished", finished=True),
        ],
    ),
    "a job that has just begun": (
        {"log": LOG, "jobs": [begin(90), begin(300)]},
        [one(90, seconds=TIMES, ended=KILLED), Attempt(300, 300)],
    ),
    "a job that was not let begin": (
        {"jobs": [begin(90), begin(300), end(400, None, "2 starts without progress")]},
        [
            Attempt(90, 90, ended=KILLED),
            Attempt(300, 300, ended="2 starts without progress", failed=True),
        ],
    ),
    "by hand after a job": (
        {
            "log": [*LOG, ended("failed", 10, 50.0, "no disk"), start(300, step=5, time=25.0)],
            "jobs": [begin(90), end(155, 2, "status 2")],
        },
        [
            one(90, last=155, seconds=TIMES, ended="no disk; status 2", failed=True),
            one(300, last=300, step=5, reached=5, seconds=(25.0, 25.0)),
        ],
    ),
    "a job whose end comes after another's begin": (
        {
            "log": [*LOG, start(200, step=5, time=25.0)],
            "jobs": [begin(90), begin(160, job="8"), end(170, 137, CANCELLED)],
        },
        [
            one(90, last=170, seconds=TIMES, ended=CANCELLED),
            one(160, last=200, step=5, reached=5, seconds=(25.0, 25.0)),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_attempts(name: str, tmp_path: Path) -> None:
    files, expected = CASES[name]
    assert attempts(write_run(tmp_path, **files)) == expected


def test_a_torn_row_hides_no_start(tmp_path: Path) -> None:
    write_run(tmp_path, log=[])
    torn = '{"step": 12, "time": 6' + lines([start(300, step=10, time=50.0)])
    (tmp_path / "metrics.jsonl").write_text(lines(LOG) + torn)
    assert [attempt.step for attempt in attempts(tmp_path)] == [0, 10]


def test_a_log_of_before_starts_were_logged(tmp_path: Path) -> None:
    """Its end is when the file was last written."""
    resume = {"event": "resume", "step": 8, "time": 40.0}
    write_run(tmp_path, log=[row(5, 25.0), row(10, 50.0), resume, row(20, 100.0)])
    os.utime(tmp_path / "metrics.jsonl", (10_100, 10_100))
    assert attempts(tmp_path) == [
        Attempt(10_000, 10_050, 0, 10, (0.0, 50.0), KILLED),
        Attempt(10_040, 10_100, 8, 20, (40.0, 100.0)),
    ]


def test_two_trainings_of_one_process(tmp_path: Path) -> None:
    """In the order of their starts, whenever the files were last touched."""
    vae = [start(20, began=10), ended("finished", 4, 30.0)]
    unet = [start(60, began=10), row(2, 20.0), start(105, began=100, step=1, time=10.0)]
    for name, log in (("vae", vae), ("unet", unet)):
        write_run(tmp_path / name, log=log)
    for folder in ("unet", "vae"):
        os.utime(tmp_path / folder / "metrics.jsonl", (1, 1))
    assert attempts(tmp_path) == [
        Attempt(10, 50.0, 0, 4, (0, 30.0), "finished", True, training="vae"),
        Attempt(10, 80.0, 0, 2, (0, 20.0), KILLED, training="unet"),
        Attempt(100, 105, 1, 1, (10.0, 10.0), training="unet"),
    ]


def test_a_heartbeat_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "heartbeat.json").write_text("{")
    with pytest.raises(UserError, match=r"heartbeat\.json: not JSON"):
        heartbeat(tmp_path)
    assert heartbeat(tmp_path / "elsewhere") is None


def test_notes_add_up(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "new"
    note_job(run, "begin", job="7", step=0)
    note_job(run, "end", job="7", step=3)
    first, second = read_rows(run / "jobs.jsonl")
    assert first.pop("wall") <= second.pop("wall")
    assert (first, second) == (
        {"event": "begin", "job": "7", "step": 0},
        {"event": "end", "job": "7", "step": 3},
    )
