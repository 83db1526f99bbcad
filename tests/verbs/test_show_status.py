"""stack status: what people see, of one run and of forty, and of a real one that was stopped."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from stack.cli import main
from stack.verbs.status import duration
from tests.pipeline import World, logged_rows, recipe_fields, write_recipe
from tests.report.journals import (
    beat,
    begin,
    end,
    ended,
    killed_twice,
    row,
    save,
    start,
    write_run,
)

CELLS = ("run", "state", "step", "img/s", "left", "saved", "re", "good", "look")


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("time.time", lambda: 2200.0)


def show(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[str]:
    """The lines that stack status prints."""
    assert main(["status", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (61, "1 min"),
        (119, "1 min"),
        (3599, "59 min"),
        (3599.6, "1 h 00"),
        (3600 * 4 + 305, "4 h 05"),
        (86399, "23 h 59"),
        (86400 * 6 + 2 * 3600 + 5, "6 d 02 h"),
        (86400 * 400, "400 d 00 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = killed_twice(tmp_path / "run")
    figures = {"r/clipped": 0.25, "discriminator/accuracy": 0.625, "skipped": 2, "bad_samples": 0}
    figures |= {"data_wait": 0.0625, "save_wait": 0.01, "memory/gpu_gb": 61.5}
    figures |= {"memory/host_gb": 9.0, "ranks/slowest": 3, "ranks/lag": 0.05}
    with (run / "metrics.jsonl").open("a") as log:
        log.write(json.dumps(row(43, 430.0, **figures)) + "\n")
    lines = show(capsys, run)
    assert lines[0] == f"{run}: running"
    facts = dict(line.strip().split(maxsplit=1) for line in lines[1:13] if line[2:6] != "loss")
    assert facts == {
        "step": "44/100",
        "rate": "12.5 images/s",
        "time": "left    9 min",
        "goodput": "63.8% of the time under way",
        "memory": "61.5 GB on the fullest GPU, 9 GB in the largest process",
        "waits": "data 6.2%, saves 1.0%",
        "ratios": "25.0% at a clip, discriminator right 62.5% of the time",
        "mishaps": "2 skipped iterations, 0 damaged samples",
        "slowest": "rank 3, by 5.0%",
        "look": lines[12].split(maxsplit=1)[1],
    }
    text = "\n".join(lines)
    assert "loss fake          2\n" in text
    assert "look         iterations skipped, a loss or gradient not being finite: 2" in text
    assert "restarts: 2" in text
    assert re.search(r"20 *│ *5 steps, 50 s *│ *3 min *│ *ended without a word", text)
    assert re.search(r"30 *│ *6 steps, 1 min *│ *4 min *│ *status 75: a rank was gone", text)
    assert max(map(len, lines)) <= 80


def test_a_run_with_nothing_to_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    assert show(capsys, run) == [f"{run}: new", "  step         0/?"]


@pytest.mark.parametrize("state", ["failed", "stopped", "running"])
def test_the_reason_of_an_end(
    state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What looks like markup or an emoji is neither; nothing is wrapped."""
    reason = f"data.folders: [/data/x] [red] :boom: {'x' * 90}"
    log = [start(2100), ended(state, 3, 9.0, reason)]
    lines = show(capsys, write_run(tmp_path / "[b]run", log=log))
    assert lines[0] == f"{tmp_path}/[b]run: {state}"
    assert (f"  reason       {reason}" in lines) == (state != "running")


def test_reasons_in_the_table_of_restarts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = [start(2000), ended("failed", 3, 9.0, "[/x] [red]"), start(2100)]
    lines = show(capsys, write_run(tmp_path, log=log))
    assert any("[/x] [red]" in line for line in lines)


def long_run(run: Path) -> Path:
    """The widest figures there are."""
    last = beat(599_999, 2199.0, total_steps=600_000, seconds_per_step=9e5)
    log = [start(2000), row(599_999, 150.0, images_per_second=123456.0, skipped=3)]
    jobs = [begin(1900 + number) for number in range(12)]
    save(run, 599_000)
    return write_run(run, log=log, last=last, jobs=jobs)


def test_forty_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line each, or more where a path is folded; nothing is cut off."""
    runs = [killed_twice(tmp_path / f"run{number}") for number in range(36)]
    runs.append(long_run(tmp_path / "a_run_whose_name_goes_on_and_on_and_on_and_on_and_on_and_on"))
    runs.append(write_run(tmp_path / "[red]new", log=[]))
    runs.append(write_run(tmp_path / "queued", jobs=[begin(1), end(2, 75, again=True)]))
    runs.append(write_run(tmp_path / "failed", jobs=[begin(1), end(2, 2)]))
    file = tmp_path / "status.json"
    lines = show(capsys, *runs, "--json", file)
    assert max(map(len, lines)) <= 80
    rows = [re.split(r"[│┃]", line)[1:-1] for line in lines if line[0] in "│┃"]
    assert tuple(cell.strip() for cell in rows[0]) == CELLS
    merged: list[list[str]] = []
    for cells in rows[1:]:
        if cells[1].strip():
            merged.append([cell.strip() for cell in cells])
        else:
            merged[-1][0] += cells[0].strip()
    assert [cells[0] for cells in merged] == list(map(str, runs))
    assert merged[0][1:] == ["running", "44/100", "12", "9 min", "-", "2", "64%", "1"]
    assert merged[36][2:7] == ["599999/600000", "123456", "10 d 10 h", "599000", "11"]
    assert merged[36][8] == "1"
    assert [cells[1] for cells in merged[37:]] == ["new", "queued", "failed"]
    found = json.loads(file.read_text())
    assert [one["run"] for one in found] == list(map(str, runs))


def test_what_is_no_run_is_named_below_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = killed_twice(tmp_path / "run"), tmp_path / "other"
    other.mkdir()
    file = tmp_path / "status.json"
    lines = show(capsys, run, other, "--json", file)
    assert lines[-1].startswith(f"not shown: {other}: not a run folder")
    assert [one["run"] for one in json.loads(file.read_text())] == [str(run)]
    for runs in ([other], [other, other]):
        assert main(["status", *map(str, runs)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {other}: not a run folder")


def test_one_run_as_json_is_no_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "status.json"
    show(capsys, killed_twice(tmp_path / "run"), "--json", file)
    found = json.loads(file.read_text())
    keys = {"state", "step", "total_steps", "images_per_second", "restarts"}
    assert keys | {"last_checkpoint", "health"} <= found.keys()


def test_a_real_run_that_was_stopped_and_goes_on(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.undo()
    recipe = write_recipe(tmp_path, recipe_fields(world, iterations=8))
    run, file = tmp_path / "run", tmp_path / "status.json"

    def look() -> dict[str, Any]:
        assert main(["status", str(run), "--json", str(file)]) == 0
        return json.loads(file.read_text())

    from stack.train.trainer import Trainer

    iterate = Trainer._iterate

    def stopped_in_the_third(self: Trainer, done: int, *rest: Any) -> dict[str, float]:
        if done == 2:
            signal.raise_signal(signal.SIGTERM)
        return iterate(self, done, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_iterate", stopped_in_the_third)
        assert main(["distill", str(recipe)]) == 85
    found = look()
    assert (found["state"], found["step"], found["total_steps"]) == ("stopped", 3, 8)
    assert (found["reason"], found["restarts"]) == ("SIGTERM", [])
    assert found["last_checkpoint"]["step"] == 3
    assert 0 <= found["last_checkpoint"]["age_seconds"] < 60
    assert main(["distill", str(recipe), "--resume"]) == 0
    found = look()
    assert (found["state"], found["step"], found["total_steps"]) == ("finished", 8, 8)
    [restart] = found["restarts"]
    assert (restart["step"], restart["reason"], restart["lost_steps"]) == (3, "SIGTERM", 0)
    assert restart["lost_seconds"] == 0
    assert 0 < found["goodput"] < 1
    assert found["images_per_second"] == logged_rows(run)[-2]["images_per_second"] > 0
    health = found["health"]
    assert {"skipped", "bad_samples", "clipped", "discriminator_accuracy"} <= health.keys()
    assert {"data_wait", "save_wait", "host_gb"} <= health.keys()
    assert {"fake", "discriminator"} <= health["losses"].keys()
    assert "finished" in capsys.readouterr().out
