"""The exported student is the one that was trained, and plain diffusers samples it in one step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from stack.cli import main
from stack.nets.sd15 import SDDenoiser, load_schedule, load_unet
from stack.nets.text import load_text
from stack.nets.vae import load_vae
from stack.nets.weights import STEMS
from stack.sample.export import save_pipeline
from stack.sample.generate import TextToImage, generate
from stack.train.build_pictures import teacher_and_student
from tests.pipeline import (
    World,
    copy,
    recipe_fields,
    state_of,
    tree,
    write_recipe,
)

PROMPTS = ["a red zero", "a blue three", ""]


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = copy(finished, tmp_path_factory.mktemp("exported") / "run")
    assert main(["export", str(run)]) == 0
    return run


def assert_plain_diffusers_agrees(folder: Path, student: TextToImage) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = student.noise(5, torch.arange(len(PROMPTS)))
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "latents": noise}
    found = pipeline(PROMPTS, output_type="latent", **options).images
    ids = student.text.tokenize(PROMPTS)[0]
    assert torch.allclose(found, student.latents(ids, noise), rtol=1e-4, atol=1e-4)
    pictures = pipeline(PROMPTS, output_type="pt", **options).images
    ours = generate(student, PROMPTS, seed=5, batch=2).float() / 255
    assert pictures.std() > 0.01, "a flat picture would prove nothing"
    assert (pictures - ours).abs().max() < 1.5 / 255


def test_one_step_of_plain_diffusers(exported: Path) -> None:
    _, _, student = teacher_and_student(exported)
    assert (student.nfe, student.steps, student.guidance) == (1, 1, 1.0)
    assert_plain_diffusers_agrees(exported / "student", student)


def test_the_weights_are_the_average(exported: Path) -> None:
    tensors, _ = state_of(exported)
    weights = load_file(exported / "student" / "unet" / "diffusion_pytorch_model.safetensors")
    average = {n[13:]: v for n, v in tensors.items() if n.startswith("ema_0.9.unet.")}
    assert weights.keys() == average.keys(), "no more and no less than the UNet's parameters"
    assert all(torch.equal(weights[name], value) for name, value in average.items())
    last = {name: tensors[f"student.unet.{name}"] for name in average}
    assert any(not torch.equal(weights[name], value) for name, value in last.items())


def test_the_other_parts_are_the_teachers(exported: Path, world: World) -> None:
    student, teacher = tree(exported / "student"), tree(world.teacher)
    parts = ("vae/", "text_encoder/", "tokenizer/")
    for name in [name for name in teacher if name.startswith(parts)]:
        assert student[name][1] == teacher[name][1], name
    config = json.loads((exported / "student/scheduler/scheduler_config.json").read_text())
    assert config["prediction_type"] == "v_prediction"
    assert (config["timestep_spacing"], config["set_alpha_to_one"]) == ("trailing", True)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_any_parameterization(tmp_path: Path, world: World, prediction: str) -> None:
    """Also from the scheduler class that SD v1.5 ships with."""
    teacher = copy(world.teacher, tmp_path / "teacher")
    path = teacher / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text()) | {"prediction_type": prediction}
    config |= {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    path.write_text(json.dumps(config))
    index = json.loads((teacher / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "PNDMScheduler"]
    (teacher / "model_index.json").write_text(json.dumps(index))
    unet = load_unet(teacher)
    denoiser = SDDenoiser(unet, *load_schedule(teacher)).eval()
    cpu = torch.device("cpu")
    student = TextToImage(denoiser, load_text(teacher), load_vae(teacher), cpu)
    assert_plain_diffusers_agrees(save_pipeline(unet, teacher, tmp_path / "out"), student)


def test_betas_of_its_own_and_weights_in_half_precision(tmp_path: Path, world: World) -> None:
    """The student has the teacher's schedule, and files that diffusers takes without a variant."""
    teacher = copy(world.teacher, tmp_path / "teacher")
    path = teacher / "scheduler" / "scheduler_config.json"
    betas = torch.linspace(0.001, 0.03, 1000).tolist()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trained_betas": betas}))
    for part, stem in STEMS.items():
        whole = teacher / part / f"{stem}.safetensors"
        weights = {name: value.half() for name, value in load_file(whole).items()}
        save_file(weights, whole.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        whole.unlink()
    (teacher / "safety_checker").mkdir()  # Which is not used here.
    save_file(weights, teacher / "safety_checker" / "model.fp16.safetensors")
    unet = load_unet(teacher)
    denoiser = SDDenoiser(unet, *load_schedule(teacher)).eval()
    cpu = torch.device("cpu")
    student = TextToImage(denoiser, load_text(teacher), load_vae(teacher), cpu)
    out = save_pipeline(unet, teacher, tmp_path / "out")
    assert not list(out.rglob("*fp16*"))
    assert (out / "safety_checker" / "model.safetensors").is_file()
    assert_plain_diffusers_agrees(out, student)
    config = json.loads((out / "scheduler/scheduler_config.json").read_text())
    assert config["trained_betas"] == betas


def test_text_weights_have_the_names_that_older_transformers_want(
    tmp_path: Path, world: World
) -> None:
    """Those of a teacher that lacks them, too, and the encoder reads them."""
    teacher = copy(world.teacher, tmp_path / "teacher")
    file = Path("text_encoder") / "model.safetensors"
    named = load_file(teacher / file)
    assert all(name.startswith("text_model.") for name in named)
    bare = {name.removeprefix("text_model."): value for name, value in named.items()}
    save_file(bare, teacher / file, metadata={"format": "pt"})
    save_pipeline(load_unet(teacher), teacher, tmp_path / "out")
    exported = load_file(tmp_path / "out" / file)
    assert exported.keys() == named.keys()
    assert all(torch.equal(exported[name], value) for name, value in named.items())
    ids = load_text(teacher).tokenize(PROMPTS)[0]
    states = [load_text(folder)(ids) for folder in (world.teacher, teacher, tmp_path / "out")]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_half_precision(exported: Path) -> None:
    out = exported / "half"
    assert main(["export", str(exported), "--fp16", "--out", str(out)]) == 0
    weights = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}


def test_export_again_replaces_the_export(exported: Path) -> None:
    before = tree(exported / "student")
    assert main(["export", str(exported)]) == 0
    after = tree(exported / "student")
    assert {n: digest for n, (_, digest) in after.items()} == {
        n: digest for n, (_, digest) in before.items()
    }


@pytest.mark.parametrize("what", ["folder", "file", "teacher"])
def test_export_never_replaces_anything_else(
    tmp_path: Path, world: World, exported: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    out = tmp_path / "there"
    if what == "teacher":
        copy(world.teacher, out)
    elif what == "folder":
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")
    else:
        out.write_text("years of work")
    before = tree(tmp_path)
    assert main(["export", str(exported), "--out", str(out)]) == 2
    assert f"--out: {out} exists already" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_sample_draws_teacher_above_student(exported: Path) -> None:
    assert main(["sample", str(exported), "--prompt", "a red one", "--prompt", "a blue one"]) == 0
    with Image.open(exported / "samples" / "grid.png") as grid:
        assert grid.size == (2 * (16 + 16 + 2), 2 * (16 + 16 + 2))
    told = json.loads((exported / "samples" / "grid.json").read_text())
    assert told == {"prompts": ["a red one", "a blue one"], "seed": 0}


def test_sample_without_prompts_takes_the_datas(tmp_path: Path, world: World) -> None:
    fields = recipe_fields(
        world, iterations=1, student_every=1, log={"every": 1, "sample_every": 1}
    )
    assert main(["distill", str(write_recipe(tmp_path, fields))]) == 0
    assert main(["sample", str(tmp_path / "run")]) == 0
    told = json.loads((tmp_path / "run" / "samples" / "grid.json").read_text())
    assert len(told["prompts"]) == len(set(told["prompts"])) > 1
    assert all(prompt.startswith("a ") for prompt in told["prompts"])
