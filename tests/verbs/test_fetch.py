"""stack fetch: what it prints, writes and refuses, and a job that goes on without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from stack.config.load import load_recipe
from stack.util.errors import UserError
from stack.verbs.fetch import fetch
from tests.config.minimal import DISTILL, MIXTURE, write
from tests.forked import ROOT
from tests.nets.hub_server import COMMIT, REPOSITORY, HubServer, make_repository, serving, use

PINNED = {"path": REPOSITORY, "revision": COMMIT}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never changed by a test."""
    return make_repository(tmp_path_factory.mktemp("hub") / "repository")


@pytest.fixture
def server(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    with serving(repository) as server:
        use(monkeypatch, server, tmp_path / "cache")
        yield server


def recipe_of(folder: Path, teacher: dict[str, Any]) -> Any:
    return load_recipe(write(folder / "recipe.yaml", DISTILL | {"teacher": teacher}))


def test_one_line_and_figures(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, figures = recipe_of(tmp_path, PINNED), tmp_path / "fetch.json"
    assert fetch(recipe, json_file=figures) == 0
    [line] = capsys.readouterr().out.splitlines()
    [row] = json.loads(figures.read_text())["sources"]
    folder = tmp_path / "cache" / "models--tiny--pipeline" / "snapshots" / COMMIT
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    assert row == PINNED | {
        "what": "teacher",
        "folder": str(folder),
        "files": len(files),
        "bytes": size,
    }
    count = f"{len(files)} files, {size:,} bytes"
    assert line == f"teacher: {REPOSITORY} at {COMMIT}: {count}, checked, in {folder}"


def test_a_folder_is_checked_only(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(recipe_of(tmp_path, {"path": str(repository)})) == 0
    told = f"teacher: {repository} is a folder: nothing to fetch\n"
    assert capsys.readouterr().out == told
    with pytest.raises(UserError, match=r"^teacher\.path: /no/such/model_index\.json: missing$"):
        fetch(recipe_of(tmp_path, {"path": "/no/such"}))


def test_a_recipe_without_a_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(load_recipe(write(tmp_path / "recipe.yaml", MIXTURE))) == 0
    assert capsys.readouterr().out == "nothing to fetch: the recipe names no pipeline\n"


REFUSED = [
    # the teacher, whether offline, the message
    ({"path": REPOSITORY}, False, f"teacher.revision: missing; pin {REPOSITORY} by "),
    ({"path": "tiny/other"}, False, "teacher.revision: missing; tiny/other is no folder, and "),
    (PINNED, True, f"teacher.path: {REPOSITORY}: HF_HUB_OFFLINE is set"),
    ({"path": REPOSITORY}, True, f"teacher.path: {REPOSITORY}: no such folder, and not pinned as "),
]


@pytest.mark.parametrize(("teacher", "offline", "expected"), REFUSED)
def test_what_is_refused(
    server: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    teacher: dict[str, Any],
    offline: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(UserError) as caught:
        fetch(recipe_of(tmp_path, teacher))
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)
    if offline:
        assert server.asked == []
    elif teacher["path"] == REPOSITORY:
        assert f"teacher.revision={COMMIT}" in str(caught.value)


def test_a_revision_is_a_whole_commit(tmp_path: Path) -> None:
    for revision in ("main", COMMIT[:12], COMMIT.upper()):
        with pytest.raises(UserError, match=r"teacher\.revision: string should match pattern"):
            recipe_of(tmp_path, {"path": REPOSITORY, "revision": revision})


JOB = """
import sys
from stack.config.load import load_recipe
from stack.nets.hub import pipeline_folder
from stack.nets.sd15 import load_unet
from stack.util.errors import UserError
from stack.verbs.fetch import fetch
recipe = load_recipe(sys.argv[1])
try:
    if sys.argv[2] == "fetch":
        fetch(recipe)
    else:
        load_unet(pipeline_folder(recipe.teacher.path, recipe.teacher.revision))
except UserError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.slow
def test_login_node_and_jobs(server: HubServer, tmp_path: Path) -> None:
    """By the environment alone, as on a cluster: a job, the fetch, the job again."""
    recipe = write(tmp_path / "recipe.yaml", DISTILL | {"teacher": PINNED})
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_CACHE", None)

    def run(what: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", JOB, str(recipe), what]
        return subprocess.run(
            command, cwd=ROOT, env=environment | more, capture_output=True, text=True
        )

    def last_line(done: subprocess.CompletedProcess[str]) -> str:
        assert done.returncode == 1
        return done.stderr.splitlines()[-1]

    told = last_line(run("job", HF_HUB_OFFLINE="1"))
    assert told.startswith(f"error: teacher.path: {REPOSITORY}: revision {COMMIT} is not in the ")
    assert told.endswith("; run python -m stack fetch RECIPE where there is a network")
    told = last_line(run("fetch", HF_HUB_OFFLINE="1"))
    assert "HF_HUB_OFFLINE is set" in told
    assert not server.asked
    assert run("fetch").returncode == 0
    server.down, asked = True, len(server.asked)
    done = run("job")  # Without HF_HUB_OFFLINE, and asks nothing all the same.
    assert done.returncode == 0, done.stderr
    assert len(server.asked) == asked
