"""What makes pictures, from the folder of a pipeline or of an EDM network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stack.nets.edm import edm_network
from stack.nets.edm_files import save_edm
from stack.nets.sd15 import load_unet
from stack.sample.export import save_pipeline
from stack.sample.generate import Sampler
from stack.train.build_samplers import edm_sampler, folder_sampler, pipeline_sampler
from stack.util.errors import UserError
from tests.edm_world import CONFIG, random_network
from tests.pipeline import World

CPU = torch.device("cpu")


def of_folder(path: Path) -> Sampler:
    return folder_sampler(str(path), None, device=CPU, bf16=False)


@pytest.fixture(scope="module")
def edm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_edm(random_network(CONFIG), tmp_path_factory.mktemp("edm") / "teacher")


def test_as_many_steps_as_it_is_made_for(tmp_path: Path, world: World, edm: Path) -> None:
    student = save_pipeline(load_unet(world.teacher), world.teacher, tmp_path / "student")
    adm = random_network(CONFIG.model_copy(update={"architecture": "adm"}))
    networks = (
        edm,
        save_edm(adm, tmp_path / "adm"),
        save_edm(random_network(CONFIG), tmp_path / "edm_student", steps=1),
        save_edm(adm, tmp_path / "adm_student", steps=1),
    )
    found = [of_folder(path) for path in (*networks, world.teacher, student)]
    assert [sampler.steps for sampler in found] == [18, 40, 1, 1, 25, 1]
    assert [sampler.nfe for sampler in found] == [35, 79, 1, 1, 25, 1]
    assert all(sampler.device == CPU for sampler in found)


@pytest.mark.parametrize("told", [[], {}, {"steps": 0}, {"steps": "1"}, {"steps": True}], ids=str)
def test_steps_that_are_garbled(tmp_path: Path, told: object) -> None:
    folder = save_edm(random_network(CONFIG), tmp_path / "student", steps=1)
    (folder / "sampler.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"sampler\.json: steps: .*; export the student again"):
        of_folder(folder)


def test_a_teacher_in_place_of_a_student_is_none(tmp_path: Path) -> None:
    """What says that a folder is a student's does not stay behind."""
    network = random_network(CONFIG)
    save_edm(network, tmp_path / "network", steps=1)
    assert of_folder(save_edm(network, tmp_path / "network")).steps == 18


def test_with_other_weights(world: World, edm: Path) -> None:
    """Frozen, in evaluation mode, and not the folder's."""
    network, unet = edm_network(CONFIG), load_unet(world.teacher)
    with torch.no_grad():
        next(unet.parameters()).add_(1)
    pairs = [
        (edm_sampler(edm, n, device=CPU, bf16=False) for n in (None, network.train())),
        (pipeline_sampler(world.teacher, n, device=CPU, bf16=False) for n in (None, unet.train())),
    ]
    for own, other in pairs:
        assert own.facts()["denoiser"] != other.facts()["denoiser"]
        assert not other.denoiser.training
        assert not any(weight.requires_grad for weight in other.denoiser.parameters())


NEITHER = "neither a run (recipe.yaml), a pipeline (model_index.json), nor an EDM network's folder"


@pytest.mark.parametrize("name", ["nothere", "some/where/else", "empty", "a/run"])
def test_what_is_neither(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """a/run has the form of a hub id."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(UserError) as error:
        of_folder(Path(name))
    hub = "; a pipeline of the hub needs --revision COMMIT" if name == "a/run" else ""
    assert str(error.value) == f"{name}: {NEITHER}{hub}"
