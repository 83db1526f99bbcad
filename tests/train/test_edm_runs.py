"""EDM networks through the same algorithm: trained, distilled, resumed, looked at, exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stack.cli import main
from stack.config.load import load_recipe
from stack.diffusion.karras import KarrasSchedule
from stack.fdistill.algorithm import FDistill, Noise
from stack.nets.edm import EdmDenoiser
from stack.nets.edm_files import load_edm
from stack.train.build_distill import build_distill
from stack.train.build_edm import build_edm_teacher
from stack.train.build_pictures import teacher_and_student
from tests.cli.refusal import refused
from tests.edm_world import (
    CLASSES,
    SIDE,
    EdmWorld,
    distill_fields,
    make_edm_world,
    pretrain_edm_fields,
)
from tests.pipeline import assert_same_state, copy, metrics_of, state_of, write_recipe


@pytest.fixture(scope="session")
def edm_world(tmp_path_factory: pytest.TempPathFactory) -> EdmWorld:
    return make_edm_world(tmp_path_factory.mktemp("edm"))


@pytest.fixture(scope="session")
def edm_run(edm_world: EdmWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six iterations in one go."""
    folder = tmp_path_factory.mktemp("edm_run")
    assert main(["distill", str(write_recipe(folder, distill_fields(edm_world)))]) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def edm_teacher_run(edm_world: EdmWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edm_teacher")
    assert main(["pretrain", str(write_recipe(folder, pretrain_edm_fields(edm_world)))]) == 0
    return folder / "run"


def algorithm_of(folder: Path, fields: dict[str, Any]) -> tuple[FDistill, Any]:
    recipe = load_recipe(write_recipe(folder, fields))
    job = build_distill(recipe)  # type: ignore[arg-type]
    return job.task.algorithm, job.source  # type: ignore[attr-defined]


def test_the_student_is_called_on_noise_of_standard_deviation_80(
    tmp_path: Path, edm_world: EdmWorld
) -> None:
    algorithm, source = algorithm_of(tmp_path, distill_fields(edm_world))
    [batch] = source.take()
    noise = Noise(0, 0, batch.positions)
    z = noise.normal("z", batch.x0)
    assert z.std() == pytest.approx(1, abs=0.1)
    x = algorithm.generate(batch, noise)
    network = EdmDenoiser(load_edm(edm_world.teacher), KarrasSchedule())
    assert torch.equal(x, network.denoise(80 * z, torch.full((8,), 80.0), batch.c))


def test_batches_hold_pixels_and_classes(tmp_path: Path, edm_world: EdmWorld) -> None:
    _, source = algorithm_of(tmp_path, distill_fields(edm_world))
    [batch] = source.take()
    assert batch.x0.shape == (8, 3, SIDE, SIDE)
    assert -1 <= batch.x0.min() < -0.9
    assert 0.9 < batch.x0.max() <= 1
    assert batch.c.shape == (8, CLASSES)
    assert torch.equal(batch.c.sum(1), torch.ones(8))
    assert not batch.null.any()


def test_a_run_trains_all_three(edm_world: EdmWorld, edm_run: Path) -> None:
    rows = metrics_of(edm_run)
    assert list(rows) == [1, 2, 3, 4, 5, 6]
    tensors, _ = state_of(edm_run)
    start = load_edm(edm_world.teacher, augmentation=False)
    for network in ("student", "fake"):
        moved = [
            name
            for name, value in start.named_parameters()
            if not torch.equal(tensors[f"{network}.model.{name}"], value)
        ]
        assert len(moved) == len(list(start.parameters()))
    assert any(name.startswith("heads.optimizer.") for name in tensors)


def test_a_resume_is_exact(tmp_path: Path, edm_world: EdmWorld, edm_run: Path) -> None:
    run = copy(edm_run, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-0000006")
    recipe = write_recipe(tmp_path, distill_fields(edm_world))
    assert main(["distill", str(recipe), "--resume"]) == 0
    assert_same_state(run, edm_run)


def test_export_and_sample(
    tmp_path: Path, edm_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(edm_run, tmp_path / "run")
    assert main(["export", str(run)]) == 0
    assert "at sigma 80" in capsys.readouterr().out
    _, teacher, student = teacher_and_student(run)
    assert (teacher.nfe, student.nfe) == (5, 1)
    exported = EdmDenoiser(load_edm(run / "student"), KarrasSchedule())
    z, c = torch.randn(2, 3, SIDE, SIDE), torch.eye(CLASSES)[:2]
    sigma = torch.full((2,), 80.0)
    assert torch.equal(
        exported.denoise(80 * z, sigma, c),
        student.denoiser.denoise(80 * z, sigma, c),  # type: ignore[attr-defined]
    )
    assert json.loads((run / "student" / "sampler.json").read_text()) == {"steps": 1}
    tensors, _ = state_of(run)
    averages = {n.removeprefix("ema_0.9."): v for n, v in tensors.items() if n.startswith("ema")}
    weights = dict(exported.named_parameters())
    assert averages.keys() == weights.keys(), "nothing of augmentation, no training buffers"
    assert all(torch.equal(weights[name], value) for name, value in averages.items())
    assert main(["sample", str(run)]) == 0
    with Image.open(run / "samples" / "grid.png") as grid:
        assert grid.width > grid.height / 2
    told = json.loads((run / "samples" / "grid.json").read_text())
    assert set(told["prompts"]) == {"0", "1", "2"}


def test_both_are_looked_at_in_float32(tmp_path: Path, edm_run: Path) -> None:
    """Whatever precision the run trains in: published figures are not of bfloat16 networks."""
    run = copy(edm_run, tmp_path / "run")
    recipe = run / "recipe.yaml"
    told = recipe.read_text()
    recipe.write_text(told.replace("precision: fp32", "precision: bf16"))
    assert recipe.read_text() != told
    recipe, *models = teacher_and_student(run)
    assert recipe.precision == "bf16"
    assert [model.facts()["precision"] for model in models] == ["fp32", "fp32"]


def test_a_warm_start_takes_the_weights(tmp_path: Path, edm_world: EdmWorld, edm_run: Path) -> None:
    """The second phase of ImageNet-64: all three networks'."""
    recipe = write_recipe(tmp_path, distill_fields(edm_world, init_from=str(edm_run)))
    still = [f"optim.{network}.lr=1e-9" for network in ("student", "fake", "heads")]
    assert main(["distill", str(recipe), "iterations=1", *still]) == 0
    (now, _), (before, _) = state_of(tmp_path / "run"), state_of(edm_run)
    for network in ("student.", "fake.", "heads."):
        names = [name for name in now if name.startswith(network) and "optimizer" not in name]
        assert names
        assert all(torch.allclose(now[name], before[name], atol=1e-6) for name in names)


def test_a_warm_start_from_a_teachers_training(
    tmp_path: Path,
    edm_world: EdmWorld,
    edm_teacher_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe(tmp_path, distill_fields(edm_world, init_from=str(edm_teacher_run)))
    told = f"init_from: {edm_teacher_run}: job: pretrain_edm: not a run of stack distill"
    assert refused(capsys, "distill", recipe) == f"{recipe}: {told}"


def test_micro_batches_change_nothing(tmp_path: Path, edm_world: EdmWorld, edm_run: Path) -> None:
    recipe = write_recipe(tmp_path, distill_fields(edm_world))
    assert main(["distill", str(recipe), "parallel.accumulation=2"]) == 0
    now, before = metrics_of(tmp_path / "run"), metrics_of(edm_run)
    for step, row in before.items():
        told = {name: value for name, value in row.items() if name.startswith(("loss/", "h/"))}
        assert told
        # Adam makes whole steps of a rounding difference where a gradient is zero.
        assert {name: now[step][name] for name in told} == pytest.approx(told, rel=5e-3, abs=1e-5)


def test_pretraining_ends_in_a_teacher(edm_teacher_run: Path, edm_world: EdmWorld) -> None:
    network = load_edm(edm_teacher_run / "teacher")
    assert network.config.augment_dim == 9
    tensors, _ = state_of(edm_teacher_run)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, tensors[f"ema.{name}"])
    assert (edm_teacher_run / "samples" / "teacher-0000006.png").exists()
    rows = metrics_of(edm_teacher_run)
    assert all(0 < row["loss/denoising"] < 5 for row in rows.values())


def test_pretraining_resumes_exactly(
    tmp_path: Path, edm_world: EdmWorld, edm_teacher_run: Path
) -> None:
    """Dropout included, whose masks are torch's."""
    run = copy(edm_teacher_run, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-0000006")
    shutil.rmtree(run / "teacher")
    recipe = write_recipe(tmp_path, pretrain_edm_fields(edm_world))
    torch.manual_seed(123)
    assert main(["pretrain", str(recipe), "--resume"]) == 0
    assert_same_state(run, edm_teacher_run)


def steps_of_pretraining(folder: Path, edm_world: EdmWorld, *overrides: str) -> int:
    """Two iterations; how often torch's own generator was another after one."""
    recipe = load_recipe(write_recipe(folder, pretrain_edm_fields(edm_world)), overrides)
    job, _ = build_edm_teacher(recipe)  # type: ignore[arg-type]
    changes = 0
    for iteration in range(2):
        before = torch.get_rng_state()
        job.task.iteration(iteration, job.source.take())
        changes += not torch.equal(torch.get_rng_state(), before)
    return changes


@pytest.mark.parametrize(("dropout", "changes"), [(0.0, 0), (0.13, 2)])
def test_torchs_generator_is_for_dropout_alone(
    tmp_path: Path, edm_world: EdmWorld, dropout: float, changes: int
) -> None:
    assert steps_of_pretraining(tmp_path, edm_world, f"edm.dropout={dropout}") == changes


NO_NETWORK = [
    (
        "edm.multiples=[1, 1, 1, 1, 1]",
        "edm.multiples: [1, 1, 1, 1, 1]: 5 levels, but pict",
    ),
    ("edm.attention=[4, 7]", "edm.attention: 7: the network has feature maps of sizes 8, 4"),
    ("edm.blocks=33", "edm.blocks: should be less than or equal to 32"),
]


@pytest.mark.parametrize(("override", "message"), NO_NETWORK)
def test_a_teacher_that_cannot_be_is_refused(
    tmp_path: Path,
    edm_world: EdmWorld,
    capsys: pytest.CaptureFixture[str],
    override: str,
    message: str,
) -> None:
    recipe = write_recipe(tmp_path, pretrain_edm_fields(edm_world))
    assert message in refused(capsys, "pretrain", recipe, override)


def test_the_trained_teacher_is_distilled(
    tmp_path: Path, edm_world: EdmWorld, edm_teacher_run: Path
) -> None:
    teacher = {"kind": "edm", "path": str(edm_teacher_run / "teacher")}
    recipe = write_recipe(tmp_path, distill_fields(edm_world, teacher=teacher))
    assert main(["distill", str(recipe), "iterations=2"]) == 0


REFUSED = [
    ({}, ["guidance=1.5"], "guidance: 1.5, but an EDM network has not learned the empty condition"),
    ({}, ["compute.attention=math"], "compute.attention: math, but an EDM network has torch's"),
    ({}, ["gan.resolutions=[7]"], "gan.resolutions: 7: the network has feature maps of sizes 8, 4"),
    ({}, ["times.fake=[0, 1000]"], "times.fake: ends at 1000, but the teacher's last time is 999"),
    (
        {"img_resolution": 16},
        ["gan.resolutions=[8]"],
        "manifest.json: resolution: 8, but the teacher's is 16",
    ),
    ({"label_dim": 2}, [], "data.folders: cls: 2: the teacher knows classes 0 to 1"),
]


@pytest.mark.parametrize(("changed", "overrides", "message"), REFUSED, ids=str)
def test_refusals(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, Any],
    overrides: list[str],
    message: str,
) -> None:
    world = make_edm_world(tmp_path, **changed)
    recipe = write_recipe(tmp_path / "r", distill_fields(world))
    assert message in refused(capsys, "distill", recipe, *overrides)


def test_a_teacher_that_is_not_there(
    tmp_path: Path, edm_world: EdmWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = {"kind": "edm", "path": "nowhere"}
    recipe = write_recipe(tmp_path, distill_fields(edm_world, teacher=teacher))
    assert "nowhere: config.json: no such file" in refused(capsys, "distill", recipe)


def test_without_classes(tmp_path: Path) -> None:
    """The shards' own are not read then."""
    world = make_edm_world(tmp_path, label_dim=0)
    recipe = write_recipe(tmp_path / "r", distill_fields(world))
    assert main(["distill", str(recipe), "iterations=2"]) == 0
    assert main(["sample", str(tmp_path / "r" / "run"), "--prompt", ""]) == 0
