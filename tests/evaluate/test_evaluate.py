"""``stack evaluate`` on a run, and the teacher it samples against stock diffusers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DDIMScheduler, StableDiffusionPipeline

from stack.cli import main
from stack.evaluate.features import load_judge, save_judge
from stack.sample.generate import generate
from stack.train.build_pictures import teacher_and_student
from tests.cli.refusal import refused
from tests.pipeline import World, copy, recipe_fields, run_stack, write_recipe

MEASURES = {"frechet_distance", "recall", "precision", "caption_accuracy", "mode_tv"}


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    fields = recipe_fields(world, iterations=2, evaluation={"teacher_steps": 4, "batch": 16})
    assert main(["distill", str(write_recipe(folder, fields))]) == 0
    return folder / "run"


def test_a_run_is_measured(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two fifths of the captions leave the digit open, as in the recipe, whatever --samples is."""
    assert main(["evaluate", str(run), "--samples", "40"]) == 0
    told = capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())
    assert (found["samples"], found["teacher"]["nfe"], found["student"]["nfe"]) == (40, 8, 1)
    for model in ("teacher", "student"):
        row = found[model]
        assert row["frechet_distance"] > 0
        assert 0 <= row["caption_accuracy"] <= 1
        assert 0 <= row["mode_tv"] <= 1
        assert 0 <= row["recall"] <= 1
        assert row["images_per_second"] > 0
        for measure, interval in row["intervals"].items():
            assert interval["low"] <= row[measure] == interval["value"] <= interval["high"]
        speed = {"nfe", "latency_seconds", "images_per_second", "device", "sampler"}
        assert set(row["intervals"]) == set(row) - speed - {"intervals"} == MEASURES
        assert f"{row['frechet_distance']:.4g}" in told
        assert [row["intervals"][name]["samples"] for name in ("caption_accuracy", "mode_tv")] == [
            24,
            16,
        ]
    ratio = found["student"]["images_per_second"] / found["teacher"]["images_per_second"]
    assert found["speedup"] == pytest.approx(ratio)
    assert found["real_halves_frechet_distance"] > 0
    assert "judge on held-out pictures: colour" in told
    assert found == json.loads((run / "evaluations" / "digits-subset40.json").read_text())
    assert main(["report", str(run)]) == 0
    assert f"{found['student']['frechet_distance']:.3f}" in (run / "report.html").read_text()


def test_as_many_samples_as_the_recipe_has_are_no_part(run: Path, tmp_path: Path) -> None:
    copied = copy(run, tmp_path / "run")
    recipe = yaml.safe_load((copied / "recipe.yaml").read_text())
    recipe["evaluation"] |= {"samples": 40, "ambiguous": 16}
    (copied / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["evaluate", str(copied), "--samples", "40", "--teacher", "none"]) == 0
    found = json.loads((copied / "evaluations" / "digits-no-teacher.json").read_text())
    assert (found["suite_of"], found["samples"]) == ("digits", 40)


def test_the_teacher_by_both_samplers_or_not_at_all(run: Path) -> None:
    assert main(["evaluate", str(run), "--samples", "20", "--teacher", "sde", "ode"]) == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert found["teacher_sampler"] == "ancestral, 4 steps, guidance 1.75"
    assert found["teacher"]["frechet_distance"] != found["teacher_ode"]["frechet_distance"]
    assert main(["evaluate", str(run), "--samples", "20", "--teacher", "none"]) == 0
    alone = json.loads((run / "evaluation.json").read_text())
    assert "teacher" not in alone
    assert alone["student"]["frechet_distance"] == found["student"]["frechet_distance"]


def test_what_is_made_is_not_made_again_and_measures_can_be_chosen(run: Path) -> None:
    command = ["evaluate", str(run), "--samples", "30", "--teacher", "none"]
    assert main(command) == 0
    whole = json.loads((run / "evaluation.json").read_text())["student"]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("blocks/*/0*.safetensors")}
    assert main([*command, "--measure", "caption_accuracy", "--batch", "7"]) == 0
    after = {path: path.stat().st_mtime_ns for path in run.rglob("blocks/*/0*.safetensors")}
    assert after == before
    some = json.loads((run / "evaluation.json").read_text())["student"]
    assert some["intervals"] == {"caption_accuracy": whole["intervals"]["caption_accuracy"]}


@pytest.mark.parametrize(
    "options",
    [
        ("--prompts", "captions.txt"),
        ("--reference", "pictures"),
        ("--resolution", "8"),
        ("--inception", "inception.pt"),
        ("--measure", "clip_score"),
    ],
)
def test_what_the_judge_has_no_use_for_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str]
) -> None:
    assert refused(capsys, "evaluate", run, *options).startswith(f"{options[0]}: ")


def test_a_judge_that_is_named(run: Path, world: World, tmp_path: Path) -> None:
    """For the suite digits, and as the extractor of a suite of one's own."""
    assert main(["evaluate", str(run), "--samples", "20", "--teacher", "none"]) == 0
    shared = json.loads((run / "evaluation.json").read_text())
    judge = shutil.copy(run.parent / "judge.safetensors", tmp_path / "other.safetensors")
    command = ["evaluate", str(run), "--samples", "20", "--teacher", "none"]
    assert main([*command, "--classifier", str(judge)]) == 0
    named = json.loads((run / "evaluation.json").read_text())
    assert named["student"]["intervals"] == shared["student"]["intervals"]
    (tmp_path / "captions.txt").write_text("a red one\na blue zero\n" * 8)
    (tmp_path / "suite.yaml").write_text(
        "{name: mine, prompts: captions.txt, measures: [frechet_distance], "
        f"reference: {world.shards}, networks: {{classifier: other.safetensors}}}}"
    )
    command = ["evaluate", str(run), "--teacher", "none", "--suite", str(tmp_path / "suite.yaml")]
    assert main(command) == 0
    mine = json.loads((run / "evaluation.json").read_text())
    assert mine["networks"]["distance"]["name"] == "judge"
    assert mine["student"]["frechet_distance"] > 0


@pytest.mark.slow
def test_two_ranks_measure_as_one(run: Path, tmp_path: Path) -> None:
    for ranks in (1, 2):
        command = ["evaluate", str(run), "--samples", "100", "--processes", str(ranks)]
        command += ["--out", str(tmp_path / str(ranks))]
        done = run_stack(*command, "--json", str(tmp_path / f"{ranks}.json"), ranks=ranks)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in "12")
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in ("teacher", "student"):
        assert one[name]["intervals"] == two[name]["intervals"]


def test_a_judge_of_other_pictures_is_trained_anew(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    for message in (True, False):
        assert main(["evaluate", str(copied), "--samples", "10"]) == 0
        assert ("training the judge" in capsys.readouterr().out) == message
    path = tmp_path / "judge.safetensors"
    judge = load_judge(path)
    judge.trained_on = "0" * 64
    save_judge(judge, path)
    assert main(["evaluate", str(copied), "--samples", "10"]) == 0
    assert load_judge(path).trained_on != judge.trained_on


def test_too_few_samples(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "evaluate", run, "--samples", "3").startswith("--subset: 3 pict")


@torch.no_grad()
def test_the_teacher_is_the_stock_pipelines(run: Path, world: World) -> None:
    """DDIM with guidance, rounding included; the last step goes to x0 itself, not to t = 0."""
    _, teacher, _ = teacher_and_student(run)
    captions = ["a red zero", "a blue digit", ""]
    assert teacher.guidance == 1.75
    ours = generate(teacher, captions, seed=3, batch=2)
    stock = StableDiffusionPipeline.from_pretrained(world.teacher)
    whole = DDIMScheduler.from_config(stock.scheduler.config, set_alpha_to_one=True)
    stock.register_modules(scheduler=whole)
    stock.set_progress_bar_config(disable=True)
    theirs = stock(
        captions,
        latents=teacher.noise(3, torch.arange(3)),
        num_inference_steps=4,
        guidance_scale=1.75,
        output_type="pt",
    ).images
    assert (ours.float() - theirs * 255).abs().max() <= 1
