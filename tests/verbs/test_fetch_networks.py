"""stack fetch and stack doctor on the networks of metrics: staged, checked, found missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from stack.config.evaluation import Networks
from stack.config.load import load_recipe
from stack.evaluate import inception
from stack.evaluate.clip import load_clip
from stack.nets.hub_networks import network_fault, network_path, stage_network
from stack.train.build_tools import place_of
from stack.util.errors import UserError
from stack.verbs.doctor_networks import metric_networks
from stack.verbs.evaluate_suite import bring_inception
from stack.verbs.fetch import fetch
from stack.verbs.fetch_file import download
from tests.config.minimal import DISTILL, write
from tests.evaluate.networks import save_clip
from tests.nets.hub_server import COMMIT, REPOSITORY, HubServer, serving, use
from tests.pipeline import World
from tests.serving import running
from tests.verbs.file_server import DATA, FileServer

CLIP = f"{REPOSITORY}@{COMMIT}"
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


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with running(FileServer()) as server:
        yield server


def recipe_of(folder: Path, world: World, **evaluation: Any) -> Any:
    fields = DISTILL | {"teacher": {"path": str(world.teacher)}, "evaluation": evaluation}
    return load_recipe(write(folder / "recipe.yaml", fields))


# One file by its checksum.


def test_a_file_comes_whole_over_a_bad_line(files: FileServer, tmp_path: Path) -> None:
    """Errors of the moment are tried again, and what broke off goes on where it was."""
    files.answers, files.cuts = [503], [1000, 0, 70_000]
    download(files.url, tmp_path / "new" / "file", SHA256)
    assert (tmp_path / "new" / "file").read_bytes() == DATA
    assert files.sent == len(DATA)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_file_that_has_moved(files: FileServer, tmp_path: Path) -> None:
    download(files.url.replace("file", "moved"), tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == DATA
    with pytest.raises(UserError, match="/gone: HTTP 404 Not Found; look whether it has moved"):
        download(files.url.replace("file", "gone"), tmp_path / "gone", SHA256)


def test_a_file_with_another_checksum_stays_out(files: FileServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"its SHA-256 is {SHA256}, not 0000"):
        download(files.url, tmp_path / "file", "0" * 64)
    assert not list(tmp_path.iterdir())


def test_a_file_whose_checksum_nobody_has_told(files: FileServer, tmp_path: Path) -> None:
    files.cuts = [1000]
    assert download(files.url, tmp_path / "file", None) == SHA256
    assert (tmp_path / "file").read_bytes() == DATA


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
    files: FileServer,
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
    (tmp_path / "networks" / "inception.pt").write_bytes(DATA[1:])
    with pytest.raises(
        UserError, match=r"inception: .*: its SHA-256 is .*; move it away, then run"
    ):
        fetch(recipe)
    assert [one.level for one in metric_networks(recipe)] == ["warn", "ok", "ok"]


def test_fetch_refuses_what_is_nowhere(world: World, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, world, networks={"classifier": str(tmp_path / "none")})
    with pytest.raises(UserError, match=r"networks\.classifier: .*: missing; it comes from python"):
        fetch(recipe)


def test_a_network_of_the_hub_is_to_be_pinned(
    server: HubServer, world: World, tmp_path: Path
) -> None:
    """The newest commit is named."""
    recipe = recipe_of(tmp_path, world, networks={"clip": REPOSITORY})
    with pytest.raises(UserError, match=f"clip: {REPOSITORY}: no such .* write {CLIP}$"):
        fetch(recipe)


def test_offline_the_hub_is_not_asked(
    server: HubServer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for told in (REPOSITORY, CLIP):
        recipe = recipe_of(tmp_path, world, networks={"clip": told})
        with pytest.raises(UserError, match=r"networks\.clip: .*: HF_HUB_OFFLINE is set, so"):
            fetch(recipe)
    assert server.asked == []


@pytest.mark.parametrize(
    ("hashed", "level"), [(True, "fail"), (False, "ok")], ids=["hashed", "by size"]
)
def test_the_doctor_reads_whole_files_where_it_is_told_to(
    server: HubServer, world: World, tmp_path: Path, hashed: bool, level: str
) -> None:
    staged = stage_network("clip", CLIP)
    assert staged
    blob = (staged.folder / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    quick = {"quick_every": 5, "quick_suite": "coco30k"}
    recipe = recipe_of(tmp_path, world, networks={"clip": CLIP}, **quick)
    [one] = metric_networks(recipe, hashed=hashed)
    assert one.level == level
    assert one.text.count("python -m stack fetch") == (level == "fail")


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


def test_what_fetch_does_not_bring_is_not_promised(world: World, tmp_path: Path) -> None:
    """A folder of the user's own; and where it is there, no more than that is said."""
    folder = tmp_path / "clip"
    recipe = recipe_of(tmp_path, world, networks={"clip": str(folder)})
    [one] = metric_networks(recipe)
    assert "; it comes from https://huggingface.co/laion/" in one.text
    assert "stack fetch" not in one.text
    folder.mkdir()
    [one] = metric_networks(recipe)
    assert (one.level, one.text) == ("ok", f"{folder}: there (clip)")


def test_inception_by_its_url(
    files: FileServer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation and stack fetch bring it to the same place, once, and only if it is the file
    that is known."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    networks = Networks(inception=files.url)
    with pytest.raises(UserError, match=f"its SHA-256 is {SHA256}, not {inception.SHA256}"):
        bring_inception(networks)
    monkeypatch.setattr(inception, "SHA256", SHA256)
    recipe = recipe_of(tmp_path, world, networks={"inception": files.url})
    [one] = metric_networks(recipe)
    assert one.level == "warn"
    bring_inception(networks)
    assert Path(place_of("inception", files.url)).read_bytes() == DATA
    sent = files.sent
    bring_inception(networks)
    assert fetch(recipe) == 0
    assert files.sent == sent
    [one] = metric_networks(recipe)
    assert one.level == "ok"
