"""Pipelines whose weights are there in half precision alone, and what comes before these."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from stack.nets import hub
from stack.nets.hub_cache import weight_faults
from stack.nets.pickles import ASK
from stack.nets.sd15 import load_unet
from stack.nets.text import load_text
from stack.nets.vae import load_vae, vae_hash
from stack.nets.weights import STEMS
from stack.util.errors import UserError
from tests.nets.hub_server import COMMIT, REPOSITORY, make_repository, serving, use
from tests.pipeline import copy, make_teacher, same_tensors

LOADERS: dict[str, Callable[[Path], Any]] = {
    "unet": load_unet,
    "vae": lambda folder: load_vae(folder).vae,
    "text_encoder": lambda folder: load_text(folder).model,
}
each_part = pytest.mark.parametrize("part", LOADERS)


def whole(folder: Path, part: str) -> Path:
    return folder / part / f"{STEMS[part]}.safetensors"


def half(folder: Path, part: str) -> Path:
    return whole(folder, part).with_suffix(".fp16.safetensors")


def halved(folder: Path, *parts: str) -> Path:
    """Weights of components replaced by their variant fp16."""
    for part in parts or LOADERS:
        weights = {name: value.half() for name, value in load_file(whole(folder, part)).items()}
        save_file(weights, half(folder, part), metadata={"format": "pt"})
        whole(folder, part).unlink()
    return folder


def rounded(folder: Path, part: str) -> dict[str, Tensor]:
    """float32 weights that have been in half precision."""
    return {n: w.half().float() for n, w in LOADERS[part](folder).state_dict().items()}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never changed by a test."""
    folder = tmp_path_factory.mktemp("weights") / "teacher"
    make_teacher(folder)
    return folder


def refusal(action: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@each_part
def test_half_precision_alone_is_read_as_float32(teacher: Path, tmp_path: Path, part: str) -> None:
    folder = halved(copy(teacher, tmp_path / "teacher"), part)
    found = LOADERS[part](folder).state_dict()
    assert same_tensors(found, rounded(teacher, part)) == []
    assert hub.fault(str(folder), None) is None


def test_half_precision_in_several_files(teacher: Path, tmp_path: Path) -> None:
    folder = copy(teacher, tmp_path / "teacher")
    whole(folder, "unet").unlink()
    load_unet(teacher).half().save_pretrained(folder / "unet", variant="fp16", max_shard_size="9KB")
    assert len(list((folder / "unet").glob("*.fp16-*-of-*.safetensors"))) > 1
    assert same_tensors(load_unet(folder).state_dict(), rounded(teacher, "unet")) == []
    assert hub.fault(str(folder), None) is None
    lost = next((folder / "unet").glob("*.fp16-*-of-*.safetensors"))
    lost.unlink()
    assert hub.fault(str(folder), None) == f"{folder}/unet/{lost.name}: missing"


@each_part
def test_whole_weights_come_first(teacher: Path, tmp_path: Path, part: str) -> None:
    folder = copy(teacher, tmp_path / "teacher")
    save_file({"x": torch.ones(3)}, half(folder, part))
    found, expected = (LOADERS[part](place).state_dict() for place in (folder, teacher))
    assert same_tensors(found, expected) == []
    assert vae_hash(folder) == vae_hash(teacher)


def test_damaged_half_precision_is_told(teacher: Path, tmp_path: Path) -> None:
    folder = halved(copy(teacher, tmp_path / "teacher"))
    half(folder, "vae").write_bytes(half(folder, "vae").read_bytes()[:-100])
    told = hub.fault(str(folder), None)
    assert told is not None
    assert told.startswith(f"{half(folder, 'vae')}: damaged (")


@each_part
def test_other_variants_are_one_line(teacher: Path, tmp_path: Path, part: str) -> None:
    folder = copy(teacher, tmp_path / "teacher")
    file = whole(folder, part)
    file.rename(file.with_suffix(".non_ema.safetensors"))
    told = refusal(LOADERS[part], folder)
    assert told.startswith(f"{folder}: {part}/{file.name}: missing; ")
    assert hub.fault(str(folder), None) == f"{file}: missing"


@each_part
def test_pickles_come_before_half_precision(teacher: Path, tmp_path: Path, part: str) -> None:
    """For they are whole; nobody is given less without a word."""
    folder = copy(teacher, tmp_path / "teacher")
    stem = "pytorch_model" if part == "text_encoder" else STEMS[part]
    torch.save(load_file(whole(folder, part)), folder / part / f"{stem}.bin")
    halved(folder, part)
    assert refusal(LOADERS[part], folder).endswith(f"{whole(folder, part).name}: missing; {ASK}")
    told = hub.fault(str(folder), None)
    assert told == f"{whole(folder, part)}: missing; {ASK}"


def test_the_hash_is_that_of_the_weights_that_are_read(teacher: Path, tmp_path: Path) -> None:
    one, two = (halved(copy(teacher, tmp_path / name)) for name in ("one", "two"))
    assert vae_hash(one) == vae_hash(two) != vae_hash(teacher)
    weights = load_file(half(two, "vae"))
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, half(two, "vae"), metadata={"format": "pt"})
    assert vae_hash(one) != vae_hash(two)


def test_only_pipelines_have_variants(teacher: Path, tmp_path: Path) -> None:
    """A network of the metrics is read without."""
    file = half(halved(copy(teacher, tmp_path / "teacher")), "text_encoder")
    alone = tmp_path / "clip"
    alone.mkdir()
    shutil.copy(file, alone)
    assert list(weight_faults(alone, "model")) == [("model.safetensors", "missing")]


def test_a_repository_of_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Staged, checked, and read offline, without what else the repository has."""
    root = make_repository(tmp_path / "repository")
    for file in (root / part for part in ("unet", "text_encoder")):
        for pickle in file.glob("*.bin"):
            pickle.unlink()
    expected = rounded(root, "unet")
    halved(root, "unet")
    with serving(root) as server:
        use(monkeypatch, server, tmp_path / "cache")
        staged = hub.stage(REPOSITORY, COMMIT)
        assert hub.stage(REPOSITORY, COMMIT) == staged
        server.down = True
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        folder = hub.pipeline_folder(REPOSITORY, COMMIT)
        assert folder == staged.folder
        assert hub.fault(REPOSITORY, COMMIT) is None
        assert same_tensors(load_unet(folder).state_dict(), expected) == []
        names = {name for name in server.sent if name.endswith(".safetensors")}
        assert names == {
            str(file.relative_to(root))
            for file in (half(root, "unet"), whole(root, "vae"), whole(root, "text_encoder"))
        }
        half(folder, "unet").unlink()
        assert hub.fault(REPOSITORY, COMMIT) == f"{half(folder, 'unet')}: missing"
        told = refusal(hub.pipeline_folder, REPOSITORY, COMMIT)
        assert f"{half(folder, 'unet')}: missing" in told
