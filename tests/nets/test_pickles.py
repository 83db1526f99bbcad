"""Weights that are there as pickles only: refused, unless asked for, and then read without harm."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from stack.config.load import load_recipe
from stack.nets import hub
from stack.nets.pickles import ASK, convert
from stack.nets.sd15 import load_unet
from stack.nets.text import load_text
from stack.nets.vae import load_vae
from stack.util.errors import UserError
from stack.verbs.fetch import fetch
from tests.config.minimal import DISTILL, write
from tests.nets.hub_server import COMMIT, REPOSITORY, make_repository, serving, use
from tests.pipeline import copy, make_teacher, same_tensors, tree

STEMS = {
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "text_encoder": ("model", "pytorch_model"),
}
LOADERS: list[Callable[[Path], Any]] = [
    load_unet,
    lambda folder: load_vae(folder).vae,
    lambda folder: load_text(folder).model,
]


def pickled(folder: Path, *parts: str) -> Path:
    """The safetensors of some components replaced by pickles."""
    for part in parts:
        stem, name = STEMS[part]
        file = folder / part / f"{stem}.safetensors"
        torch.save(load_file(file), folder / part / f"{name}.bin")
        file.unlink()
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never changed by a test."""
    folder = tmp_path_factory.mktemp("pickles") / "teacher"
    make_teacher(folder)
    return folder


def recipe_of(folder: Path, **teacher: Any) -> Any:
    return load_recipe(write(folder / "recipe.yaml", DISTILL | {"teacher": teacher}))


def refusal(action: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_of_pickles(teacher: Path, tmp_path: Path, capsys: Any) -> None:
    """Refused by everything that reads it, with the way out; then made once, and the same."""
    folder = pickled(copy(teacher, tmp_path / "teacher"), *STEMS)
    for load in LOADERS:
        assert refusal(load, folder).endswith(f"missing; {ASK}")
    assert "teacher.allow_pickle=true" in ASK
    told = refusal(fetch, recipe_of(tmp_path, path=str(folder)))
    assert told == (
        f"teacher.path: {folder}/unet/diffusion_pytorch_model.safetensors: missing; {ASK}"
    )
    asked = recipe_of(tmp_path, path=str(folder), allow_pickle=True)
    assert fetch(asked) == 0
    assert "teacher: made of pickles: " in capsys.readouterr().out
    for load in LOADERS:
        assert same_tensors(load(folder).state_dict(), load(teacher).state_dict()) == []
    assert hub.fault(str(folder), None) is None
    before = tree(folder)
    assert fetch(asked) == 0
    assert tree(folder) == before


class Trap:
    """Unpickled as usual, it would write a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.write_text, (self.file, "")


@pytest.mark.parametrize("damage", ["code", "cut", "other"])
def test_no_code_of_a_pickle_runs(teacher: Path, tmp_path: Path, damage: str) -> None:
    folder = pickled(copy(teacher, tmp_path / "teacher"), "vae")
    file, sprung = folder / "vae/diffusion_pytorch_model.bin", tmp_path / "sprung"
    if damage == "code":
        file.write_bytes(pickle.dumps(Trap(sprung)))
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:500])
    else:
        torch.save({"weights": [1, 2]}, file)
    before = tree(folder)
    assert refusal(convert, folder).startswith(f"{file}: not weights alone")
    assert not sprung.exists()
    assert tree(folder) == before


@pytest.mark.parametrize("zipped", [True, False])
def test_no_cut_of_a_pickle_ends_in_a_traceback(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "vae/diffusion_pytorch_model.bin"
    file.parent.mkdir()
    torch.save({"w": torch.ones(2)}, file, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    for length in range(0, len(whole), 1 if len(whole) < 500 else 7):
        file.write_bytes(whole[:length])
        assert refusal(convert, tmp_path).startswith(f"{file}: not weights alone")


def test_a_repository_of_pickles(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a component that has safetensors, no pickle is fetched."""
    root = pickled(make_repository(tmp_path / "repository"), "unet")
    with serving(root) as server:
        use(monkeypatch, server, tmp_path / "cache")
        told = refusal(hub.stage, REPOSITORY, COMMIT)
        assert told.startswith(f"teacher.path: {REPOSITORY}: revision {COMMIT} has no unet/")
        assert told.endswith(ASK)
        staged = hub.stage(REPOSITORY, COMMIT, pickles=True)
        assert [name for name in server.sent if name.endswith(".bin")] == [
            "unet/diffusion_pytorch_model.bin"
        ]
        server.sent.clear()
        assert hub.stage(REPOSITORY, COMMIT) == staged
        assert not server.sent
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.fault(REPOSITORY, COMMIT) is None
    loaded = load_unet(hub.pipeline_folder(REPOSITORY, COMMIT))
    assert same_tensors(loaded.state_dict(), load_unet(teacher).state_dict()) == []
