"""stack fetch on the recipes of EDM's networks, from a server that stands for NVIDIA's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.config.load import load_recipe
from stack.evaluate import inception
from stack.nets.edm_files import load_edm
from stack.util.errors import UserError
from stack.verbs import fetch_edm
from stack.verbs.doctor_networks import metric_networks
from stack.verbs.fetch import fetch
from tests.forked import ROOT
from tests.nets.test_edm_files import CONFIGS, network, nvidia_pickle, same
from tests.serving import running
from tests.verbs.file_server import DATA, FileServer

RECIPES = {
    # shipped recipe: of what network a small one stands for its teacher, and its name
    "imagenet64_js": ("adm", "edm-imagenet-64x64-cond-adm"),
    "cifar10_fkl": ("ddpm++", "edm-cifar10-32x32-cond-vp"),
}
NETWORK = network(CONFIGS["ddpm++"])
PICKLE = nvidia_pickle(NETWORK)


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Inception's file and small networks; the working folder is empty."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    with running(FileServer()) as server:
        monkeypatch.setattr(inception, "SOURCE", server.url)
        monkeypatch.setattr(inception, "SHA256", hashlib.sha256(DATA).hexdigest())
        monkeypatch.setattr(fetch_edm, "SOURCE", server.address)
        yield server


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_from_nothing(
    name: str, nvidia: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, teacher = RECIPES[name]
    made = network(CONFIGS[kind])
    data = nvidia_pickle(made)
    nvidia.files[f"/{teacher}.pkl"] = data
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    assert fetch(recipe, json_file=tmp_path / "fetch.json") == 0
    assert same(load_edm(recipe.teacher.path), made)
    assert (tmp_path / "networks" / "inception-2015-12-05.pt").read_bytes() == DATA
    assert [one.level for one in metric_networks(recipe)] == ["ok"]
    rows = json.loads((tmp_path / "fetch.json").read_text())["sources"]
    assert [row["what"] for row in rows] == ["teacher", "inception"]
    sha256 = hashlib.sha256(data).hexdigest()
    assert f"SHA-256 {sha256} (unverified: NVIDIA publishes none)" in capsys.readouterr().out
    sent = nvidia.sent
    assert fetch(recipe) == 0
    assert nvidia.sent == sent
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"teacher: teachers/{teacher} is a folder: nothing to fetch"
    assert second.endswith(": nothing to fetch")


def test_a_pickle_that_is_there_is_taken(nvidia: FileServer, tmp_path: Path) -> None:
    (tmp_path / "edm-cifar10-32x32-uncond-vp.pkl").write_bytes(PICKLE)
    fetch_edm.fetch_edm(Path("edm-cifar10-32x32-uncond-vp"))
    assert same(load_edm("edm-cifar10-32x32-uncond-vp"), NETWORK)
    assert nvidia.sent == 0


def test_what_is_no_network_is_not_imported(nvidia: FileServer, tmp_path: Path) -> None:
    nvidia.files["/edm-cifar10-32x32-cond-vp.pkl"] = PICKLE[:1000]
    with pytest.raises(UserError, match=r"^edm-cifar10-32x32-cond-vp\.pkl: "):
        fetch_edm.fetch_edm(Path("edm-cifar10-32x32-cond-vp"))
    assert not (tmp_path / "edm-cifar10-32x32-cond-vp").exists()


def test_a_teacher_that_nobody_publishes(nvidia: FileServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^teacher\.path: runs/own: no such folder; .*import-edm"):
        fetch_edm.fetch_edm(Path("runs/own"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: config\.json: no such file"):
        fetch_edm.fetch_edm(Path("empty"))
