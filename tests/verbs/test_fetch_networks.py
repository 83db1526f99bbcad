"""stack fetch and stack doctor on the networks of metrics: staged, checked, found missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from stack.config.load import load_recipe
from stack.evaluate import inception
from stack.evaluate.clip import load_clip
from stack.nets.hub_networks import network_fault, network_path, stage_network
from stack.util.errors import UserError
from stack.verbs.doctor_networks import metric_networks
from stack.verbs.fetch import fetch
from stack.verbs.fetch_file import download
from tests.config.minimal import DISTILL, write
from tests.evaluate.networks import save_clip
from tests.nets.hub_server import COMMIT, REPOSITORY, HubServer, serving, use
from tests.pipeline import World
from tests.serving import running

CLIP = f"{REPOSITORY}@{COMMIT}"
DATA = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP as the hub has it, with what is not used beside it."""
    folder = tmp_path_factory.mktemp("hub") / "clip"
    save_clip(folder)
    for name in ("pytorch_model.bin", "open_clip_pytorch_model.bin", "README.md"):
        (folder / name).write_bytes(b"{}")
    return folder


@pytest.fixture
def server(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    with serving(repository) as server:
        use(monkeypatch, server, tmp_path / "cache")
        yield server


class _Files(ThreadingHTTPServer):
    """Serves DATA at /file, elsewhere nothing. `cuts`: after how many bytes a connection breaks;
    `answers`: statuses given before the file is."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cuts: list[int] = []
        self.answers: list[int] = []
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_port}/file"


class _Handler(BaseHTTPRequestHandler):
    server: _Files

    def do_GET(self) -> None:
        here = self.server
        status = here.answers.pop(0) if here.answers else 200
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", here.url)
            self.end_headers()
            return
        if status != 200 or self.path != "/file":
            self.send_error(status if status != 200 else 404)
            return
        begun = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206 if begun else 200)
        self.send_header("Content-Length", str(len(DATA) - begun))
        self.end_headers()
        part = DATA[begun:]
        if here.cuts:
            part = part[: here.cuts.pop(0)]
        here.sent += len(part)
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Files]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with running(_Files()) as server:
        yield server


def recipe_of(folder: Path, world: World, **evaluation: Any) -> Any:
    fields = DISTILL | {"teacher": {"path": str(world.teacher)}, "evaluation": evaluation}
    return load_recipe(write(folder / "recipe.yaml", fields))


# One file by its checksum.


def test_a_file_comes_whole_over_a_bad_line(files: _Files, tmp_path: Path) -> None:
    """Errors of the moment are tried again, and what broke off goes on where it was."""
    files.answers, files.cuts = [503], [1000, 0, 70_000]
    download(files.url, tmp_path / "new" / "file", SHA256)
    assert (tmp_path / "new" / "file").read_bytes() == DATA
    assert files.sent == len(DATA)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_file_that_has_moved(files: _Files, tmp_path: Path) -> None:
    download(files.url.replace("file", "moved"), tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == DATA
    with pytest.raises(UserError, match="/gone: HTTP 404 Not Found; look whether it has moved"):
        download(files.url.replace("file", "gone"), tmp_path / "gone", SHA256)


def test_a_file_with_another_checksum_stays_out(files: _Files, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"its SHA-256 is {SHA256}, not 0000"):
        download(files.url, tmp_path / "file", "0" * 64)
    assert not list(tmp_path.iterdir())


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match=r"^http://127\.0\.0\.1:9/file: failed 3 times: "):
        download("http://127.0.0.1:9/file", tmp_path / "file", SHA256, retries=2)


# Networks.


def test_a_model_of_the_hub_is_staged_and_loads_offline(
    server: HubServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError) as caught:
        network_path("clip", CLIP)
    told = str(caught.value)
    assert told.startswith(f"evaluation.networks.clip: {REPOSITORY}: revision {COMMIT} is not in ")
    assert told.endswith("run python -m stack fetch RECIPE where there is a network")
    assert stage_network("clip", CLIP)
    assert not {"pytorch_model.bin", "README.md"} & set(server.sent)
    server.down = True
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    here, there = load_clip(network_path("clip", CLIP)), load_clip(repository)
    assert here.texts(["a red one"]).equal(there.texts(["a red one"]))
    assert network_fault("clip", CLIP) is None


def test_damage_is_found(server: HubServer, tmp_path: Path) -> None:
    staged = stage_network("clip", CLIP)
    assert staged
    blob = (staged.folder / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    assert "model.safetensors: damaged" in str(network_fault("clip", CLIP))
    assert stage_network("clip", CLIP) == staged
    assert network_fault("clip", CLIP) is None


def test_one_file_of_a_repository(server: HubServer) -> None:
    told = f"{CLIP}:config.json"
    assert stage_network("hps", told)
    path = network_path("hps", told)
    assert json.loads(path.read_text())["model_type"] == "clip"
    assert set(server.sent) == {"config.json"}


def test_fetch_brings_what_the_recipe_names(
    server: HubServer,
    files: _Files,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also of a suite's file; a second time, nothing is sent."""
    monkeypatch.setattr(inception, "SOURCE", files.url)
    monkeypatch.setattr(inception, "SHA256", SHA256)
    monkeypatch.setenv("NETWORKS", str(tmp_path / "networks"))
    (tmp_path / "dino").mkdir()
    suite = {"name": "x", "prompts": "a.txt", "measures": ["clip_score"]}
    suite["networks"] = {"dino": "dino"}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    networks = {"inception": "$NETWORKS/inception.pt", "clip": CLIP}
    recipe = recipe_of(tmp_path, world, networks=networks, suite=str(tmp_path / "suite.yaml"))
    assert [one.level for one in metric_networks(recipe)] == ["warn", "warn", "ok"]
    assert fetch(recipe, json_file=tmp_path / "fetch.json") == 0
    rows = json.loads((tmp_path / "fetch.json").read_text())["sources"]
    assert [row["what"] for row in rows] == ["teacher", "inception", "clip", "dino"]
    assert (tmp_path / "networks" / "inception.pt").read_bytes() == DATA
    told = capsys.readouterr().out
    assert f"inception: {files.url}: 1 files, {len(DATA):,} bytes, checked" in told
    assert {one.level for one in metric_networks(recipe)} == {"ok"}
    sent = files.sent, server.sent.total()
    assert fetch(recipe) == 0
    assert (files.sent, server.sent.total()) == sent
    assert "is the file of" in capsys.readouterr().out


def test_fetch_refuses_what_is_nowhere(world: World, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, world, networks={"classifier": str(tmp_path / "none")})
    with pytest.raises(UserError, match=r"networks\.classifier: .*: missing; it comes from python"):
        fetch(recipe)


def test_a_network_of_the_hub_is_to_be_pinned(
    server: HubServer, world: World, tmp_path: Path
) -> None:
    """The newest commit is named."""
    recipe = recipe_of(tmp_path, world, networks={"clip": REPOSITORY})
    with pytest.raises(UserError, match=f"clip: {REPOSITORY}: not pinned; write {CLIP}$"):
        fetch(recipe)


def test_the_doctor_fails_where_training_would_look_through_it(
    world: World, tmp_path: Path
) -> None:
    """Else a network that is missing is a warning."""
    networks = {"inception": str(tmp_path / "none.pt")}
    quick = {"quick_every": 5, "quick_suite": "cifar10"}
    for evaluation, level in (({}, "warn"), (quick, "fail"), ({"quick_every": 5}, "warn")):
        [one] = metric_networks(recipe_of(tmp_path, world, networks=networks, **evaluation))
        assert one.level == level
        assert one.text.startswith(f"evaluation.networks.inception: {tmp_path}/none.pt: missing; ")
        assert "python -m stack fetch" in one.text
