"""Pipelines of the hub: staged once, offline afterwards, and no damage unnoticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from stack.nets import hub
from stack.nets.sd15 import load_schedule, load_unet
from stack.nets.text import load_text
from stack.nets.vae import load_vae
from stack.util.errors import UserError
from tests.nets.hub_server import (
    COMMIT,
    REPOSITORY,
    UNUSED,
    HubServer,
    make_repository,
    serving,
    use,
)
from tests.pipeline import copy, same_tensors

UNET, VAE = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
WANTED = {
    "model_index.json",
    "unet/config.json",
    UNET,
    "vae/config.json",
    VAE,
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "scheduler/scheduler_config.json",
}


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


def refusal(action: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_staged_pipeline_loads_offline_and_is_the_same(
    server: HubServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = hub.stage(REPOSITORY, COMMIT)
    server.down = True
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(server.asked)
    folder = hub.pipeline_folder(REPOSITORY, COMMIT)
    assert folder == staged.folder
    assert folder.name == COMMIT
    for load in (load_unet, lambda folder: load_vae(folder).vae, lambda f: load_text(f).model):
        here, there = load(folder).state_dict(), load(repository).state_dict()
        assert here
        assert same_tensors(here, there) == []
    assert (
        load_text(folder)
        .tokenize(["a red zero"])[0]
        .equal(load_text(repository).tokenize(["a red zero"])[0])
    )
    assert load_schedule(folder)[1] == load_schedule(repository)[1]
    assert hub.fault(REPOSITORY, COMMIT) is None
    assert len(server.asked) == asked


def test_only_what_is_used_is_fetched(server: HubServer) -> None:
    staged = hub.stage(REPOSITORY, COMMIT)
    here = {str(p.relative_to(staged.folder)) for p in staged.folder.rglob("*") if p.is_file()}
    assert here == set(server.sent) == WANTED
    assert not here & set(UNUSED)
    assert (staged.files, staged.bytes) == (len(here), server.sent.total())


def test_a_second_time_fetches_no_file(server: HubServer) -> None:
    first = hub.stage(REPOSITORY, COMMIT)
    server.sent.clear()
    assert hub.stage(REPOSITORY, COMMIT) == first
    assert not server.sent


def test_a_broken_transfer_goes_on_where_it_was(
    server: HubServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    server.cuts = {UNET: [1000, 0, 500]}
    hub.stage(REPOSITORY, COMMIT)
    assert server.sent[UNET] == (repository / UNET).stat().st_size
    assert hub.fault(REPOSITORY, COMMIT) is None


def test_an_interrupted_fetch_goes_on_with_what_is_missing(
    server: HubServer, repository: Path
) -> None:
    server.cuts = {UNET: [1000] + 20 * [0]}
    told = refusal(hub.stage, REPOSITORY, COMMIT)
    assert told.startswith(f"teacher.path: {REPOSITORY}: ")
    assert told.endswith("; whole files are kept, so run this again")
    folder = Path(constants.HF_HUB_CACHE, "models--tiny--pipeline", "snapshots", COMMIT)
    assert refusal(hub.pipeline_folder, REPOSITORY, COMMIT) == (
        f"teacher.path: {REPOSITORY}: revision {COMMIT} in the cache is not whole: "
        f"{folder}/{UNET}: missing; run python -m stack fetch RECIPE where there is a network"
    )
    assert hub.fault(REPOSITORY, COMMIT) == f"{folder}/{UNET}: missing"
    server.cuts, before = {}, server.sent.copy()
    hub.stage(REPOSITORY, COMMIT)
    assert server.sent - before == {UNET: (repository / UNET).stat().st_size}


def flip(path: Path) -> None:
    """One bit of the last byte."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


CHECKSUM = "damaged: not of the commit's checksum"
DAMAGE = [
    # which file, what is done to it, what is told, whether a job tells as well
    (UNET, flip, CHECKSUM, False),
    ("unet/config.json", flip, CHECKSUM, False),
    ("tokenizer/tokenizer.json", flip, CHECKSUM, False),
    (VAE, cut, "bytes instead of ", True),
    ("scheduler/scheduler_config.json", Path.unlink, "missing", True),
    ("tokenizer/tokenizer.json", Path.unlink, "missing", True),
    ("text_encoder/model.safetensors", Path.unlink, "missing", True),
    ("model_index.json", Path.unlink, "missing", True),
]


@pytest.mark.parametrize(("name", "damage", "expected", "in_a_job"), DAMAGE)
def test_damage_in_the_cache_is_told_and_mended(
    server: HubServer,
    repository: Path,
    name: str,
    damage: Callable[[Path], None],
    expected: str,
    in_a_job: bool,
) -> None:
    folder = hub.stage(REPOSITORY, COMMIT).folder
    damage((folder / name).resolve())
    told = hub.fault(REPOSITORY, COMMIT)
    assert told is not None
    assert told.startswith(f"{folder}/{name}: ")
    assert expected in told
    if in_a_job:
        assert f"{name}: " in refusal(hub.pipeline_folder, REPOSITORY, COMMIT)
    server.sent.clear()
    hub.stage(REPOSITORY, COMMIT)
    assert server.sent == {name: (repository / name).stat().st_size}
    assert hub.fault(REPOSITORY, COMMIT) is None


@pytest.mark.parametrize("name", [UNET, "unet/config.json"])
def test_a_hub_that_serves_damage(server: HubServer, name: str) -> None:
    """Equal in size, so that only the checksum can tell."""
    server.garbled = {name}
    told = refusal(hub.stage, REPOSITORY, COMMIT)
    assert told.endswith(f"{COMMIT}/{name}: {CHECKSUM}, though fetched anew")
    server.garbled = set()
    hub.stage(REPOSITORY, COMMIT)


REFUSED = [
    # what is wrong, hub id, commit, the message
    (
        "unknown repository",
        "tiny/other",
        COMMIT,
        "teacher.path: tiny/other: no such repository at {url}, or a private one",
    ),
    ("wrong revision", REPOSITORY, "f" * 40, f"teacher.revision: {'f' * 40}: not a commit of "),
    ("gated", REPOSITORY, COMMIT, f"teacher.path: {REPOSITORY}: gated; accept its terms at "),
    ("down", REPOSITORY, COMMIT, f"teacher.path: {REPOSITORY}: "),
    ("offline", REPOSITORY, COMMIT, f"teacher.path: {REPOSITORY}: HF_HUB_OFFLINE is set"),
]


@pytest.mark.parametrize(("what", "path", "revision", "expected"), REFUSED)
def test_what_cannot_be_staged(
    server: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    path: str,
    revision: str,
    expected: str,
) -> None:
    server.gated, server.down = what == "gated", what == "down"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", what == "offline")
    assert refusal(hub.stage, path, revision).startswith(expected.format(url=server.url))
    assert not server.sent


def test_a_repository_without_safetensors(
    server: HubServer, repository: Path, tmp_path: Path
) -> None:
    server.root = copy(repository, tmp_path / "pickles")
    for file in (server.root / "unet").glob("*.[bs]*"):
        file.unlink()
    told = refusal(hub.stage, REPOSITORY, COMMIT)
    assert told == f"teacher.path: {REPOSITORY}: revision {COMMIT} has no {UNET}"


def test_a_job_never_asks_the_network(server: HubServer) -> None:
    assert refusal(hub.pipeline_folder, REPOSITORY, COMMIT) == (
        f"teacher.path: {REPOSITORY}: revision {COMMIT} is not in the cache "
        f"{constants.HF_HUB_CACHE}; run python -m stack fetch RECIPE where there is a network"
    )
    told = refusal(hub.pipeline_folder, REPOSITORY, None)
    assert told.startswith(f"teacher.path: {REPOSITORY}: no such folder; ")
    assert not server.asked


@pytest.mark.parametrize("path", ["/no/such/folder", "name", "runs/digits/teacher", "../a"])
def test_other_paths_are_folders(path: str) -> None:
    assert hub.pipeline_folder(path, None) == Path(path)


def test_a_folder_comes_before_a_hub_id(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy(repository, tmp_path / REPOSITORY)
    assert hub.pipeline_folder(REPOSITORY, COMMIT) == Path(REPOSITORY)
    assert hub.fault(REPOSITORY, COMMIT) is None


FOLDER = [
    # what is done to a local pipeline folder, the fault
    (lambda f: shutil.rmtree(f / "vae"), "vae/config.json: missing"),
    (lambda f: (f / "model_index.json").unlink(), "model_index.json: missing"),
    (lambda f: (f / "model_index.json").write_text("{}"), "model_index.json: names no unet"),
    (lambda f: cut(f / UNET), f"{UNET}: damaged ("),
    (lambda f: (f / UNET).write_bytes(b""), f"{UNET}: damaged ("),
    (lambda f: (f / VAE).unlink(), f"{VAE}: missing"),
    (lambda f: cut(f / "unet/config.json"), "unet/config.json: not JSON"),
    (
        lambda f: (f / "tokenizer/tokenizer.json").unlink(),
        "tokenizer/tokenizer.json|vocab.json: missing",
    ),
    (
        lambda f: (f / f"{UNET}.index.json").write_text('{"weight_map": {"x": "x.safetensors"}}'),
        "unet/x.safetensors: missing",
    ),
]


@pytest.mark.parametrize(("damage", "expected"), FOLDER, ids=[row[1] for row in FOLDER])
def test_damage_in_a_folder_is_told(
    repository: Path, tmp_path: Path, damage: Callable[[Path], Any], expected: str
) -> None:
    folder = copy(repository, tmp_path / "teacher")
    assert hub.fault(str(folder), None) is None
    damage(folder)
    told = hub.fault(str(folder), None)
    assert told is not None
    assert told.startswith(f"{folder}/{expected}")
