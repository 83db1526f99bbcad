"""``stack evaluate --suite``: runs and pipelines through suites, on tiny networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stack.cli import main
from tests.cli.refusal import refused
from tests.evaluate.networks import save_clip
from tests.evaluate.suite_files import brief_run, save_parts, save_suite
from tests.pipeline import World, caption, copy, run_stack, tree

MEASURES = ["frechet_distance", "recall", "precision", "clip_score", "in_batch_similarity"]


@pytest.fixture(scope="module")
def original(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return brief_run(world, tmp_path_factory.mktemp("suites"))


@pytest.fixture(scope="module")
def parts(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite's file with everything that it names beside it."""
    folder = save_parts(tmp_path_factory.mktemp("parts"))
    return save_suite(folder, world, count=36, per_prompt=2, measures=MEASURES)


@pytest.fixture(scope="module")
def measured(original: Path, parts: Path) -> dict[str, Any]:
    command = [
        "evaluate",
        str(original),
        "--suite",
        str(parts / "suite.yaml"),
        "--teacher",
        "ode",
        "sde",
    ]
    assert main(command) == 0
    return json.loads((original / "evaluations" / "tiny.json").read_text())


@pytest.fixture
def run(original: Path, measured: dict[str, Any], tmp_path: Path) -> Path:
    """The run and its evaluation, for a test to go on with."""
    return copy(original, tmp_path / "run")


def test_a_run_through_a_suite(run: Path, measured: dict[str, Any]) -> None:
    assert (measured["samples"], measured["prompts"], measured["seed"]) == (72, 36, 0)
    assert json.loads((run / "evaluation.json").read_text()) == measured
    for name, nfe in (("teacher", 4), ("teacher_sde", 4), ("student", 1)):
        row = measured[name]
        assert row["nfe"] == nfe
        assert row["latency_seconds"] > 0
        assert row["frechet_distance"] > 0
        assert -1 <= row["clip_score"] <= 1
        assert -1 <= row["in_batch_similarity"] <= 1
        for measure in MEASURES:
            interval = row["intervals"][measure]
            assert interval["low"] <= row[measure] == interval["value"] <= interval["high"]
            assert interval["few_samples"]
    assert measured["teacher"]["sampler"] == "DDIM, 2 steps, guidance 1.75"
    assert measured["teacher_sde"]["sampler"] == "ancestral, 2 steps, guidance 1.75"
    assert measured["teacher"]["clip_score"] != measured["teacher_sde"]["clip_score"]
    ratio = measured["student"]["images_per_second"] / measured["teacher"]["images_per_second"]
    assert measured["speedup"] == pytest.approx(ratio)
    assert measured["reference"]["count"] == 52
    assert set(measured["networks"]) == {"distance", "similarity", "clip"}


def test_what_is_made_is_not_made_again(
    run: Path,
    parts: Path,
    measured: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also when the student alone is asked for, at another batch size."""
    before = tree(run / "evaluations" / "blocks")
    command = ["evaluate", str(run), "--suite", str(parts / "suite.yaml"), "--teacher", "none"]
    figures = run.parent / "again.json"
    assert main([*command, "--batch", "5", "--json", str(figures)]) == 0
    after = tree(run / "evaluations" / "blocks")
    assert {name: one for name, one in after.items() if name.endswith(".safetensors")} == {
        name: one for name, one in before.items() if name.endswith(".safetensors")
    }
    again = json.loads(figures.read_text())
    assert "teacher" not in again
    assert "speedup" not in again
    for measure in MEASURES:
        assert again["student"][measure] == measured["student"][measure]
    assert "72 samples, seed 0" in capsys.readouterr().out
    assert "fewer than 10000 samples behind frechet_distance, recall" in caplog.text


def test_a_stopped_evaluation_goes_on(run: Path, parts: Path, measured: dict[str, Any]) -> None:
    """One block is lost: it alone is made anew, with the same bits."""
    blocks = sorted((run / "evaluations" / "blocks").rglob("*.safetensors"))
    kept = blocks[1].read_bytes()
    stamps = {path: path.stat().st_mtime_ns for path in blocks}
    blocks[1].unlink()
    command = [
        "evaluate",
        str(run),
        "--suite",
        str(parts / "suite.yaml"),
        "--teacher",
        "ode",
        "sde",
    ]
    assert main(command) == 0
    assert blocks[1].read_bytes() == kept
    assert [p for p in blocks if p.stat().st_mtime_ns != stamps[p]] == [blocks[1]]
    again = json.loads((run / "evaluations" / "tiny.json").read_text())
    for name in ("teacher", "student"):
        assert again[name]["intervals"] == measured[name]["intervals"]


def test_features_at_other_batch_sizes(run: Path, parts: Path, tmp_path: Path) -> None:
    """Ids are bit-identical, features but for pixels whose rounding to bytes turns over, which
    depends on the processor's kernels: one moves a score by 5e-5, another sample by 1e-2."""
    from safetensors.torch import load_file

    found = []
    for batch in ("3", "32"):
        out = tmp_path / batch
        command = ["evaluate", str(run), "--suite", str(parts / "suite.yaml"), "--batch", batch]
        options = ["--teacher", "none", "--subset", "7", "--out", str(out)]
        assert main([*command, *options]) == 0
        [block] = (out / "blocks").rglob("*.safetensors")
        found.append(load_file(block))
    first, second = found
    assert first.keys() == second.keys()
    assert torch.equal(first.pop("index"), second.pop("index"))
    for name, value in first.items():
        scale = value.abs().max()
        assert (value - second[name]).abs().max() <= 1e-3 * max(1, scale), name


def test_an_exported_student_is_the_runs(
    run: Path, parts: Path, measured: dict[str, Any], tmp_path: Path
) -> None:
    """By its scheduler it takes one step, without being told."""
    assert main(["export", str(run), "--out", str(tmp_path / "student")]) == 0
    command = ["evaluate", str(tmp_path / "student"), "--suite", str(parts / "suite.yaml")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "tiny.json").read_text())
    assert "teacher" not in found
    assert found["student"]["nfe"] == 1
    for measure in MEASURES:
        assert found["student"][measure] == pytest.approx(measured["student"][measure], rel=1e-4)


def test_a_teachers_pipeline(
    world: World, parts: Path, measured: dict[str, Any], tmp_path: Path
) -> None:
    command = ["evaluate", str(world.teacher), "--suite", str(parts / "suite.yaml")]
    options = ["--steps", "2", "--guidance", "1.75", "--out", str(tmp_path)]
    assert main([*command, *options, "--measure", "clip_score"]) == 0
    found = json.loads((tmp_path / "tiny-clip_score.json").read_text())
    assert "student" not in found
    assert set(found["teacher"]["intervals"]) == {"clip_score"}
    assert found["teacher"]["clip_score"] == pytest.approx(measured["teacher"]["clip_score"])


@pytest.mark.slow
def test_two_ranks_make_the_bits_of_one(run: Path, parts: Path, tmp_path: Path) -> None:
    for ranks in (1, 2):
        command = ["evaluate", str(run), "--suite", str(parts / "suite.yaml")]
        options = ["--processes", str(ranks), "--out", str(tmp_path / str(ranks))]
        done = run_stack(*command, *options, "--teacher", "none", "--batch", "16", ranks=ranks)
        assert done.returncode == 0, done.stderr
    one, two = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.safetensors")}
        for n in ("1", "2")
    )
    assert len(one) == 3  # Two blocks, and the reference.
    assert one == two
    told = json.loads((tmp_path / "2" / "tiny-no-teacher.json").read_text())
    assert told["processes"] == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_coco30k_from_captions_to_figures(run: Path, tmp_path: Path) -> None:
    """COCO's captions file, a folder of pictures, Inception's file and CLIP's folder."""
    from PIL import Image

    from tests.evaluate.networks import pictures, save_inception

    notes = [{"id": 2 * n, "image_id": 100 - n, "caption": caption(n)} for n in range(20)]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": notes}))
    (tmp_path / "val2014").mkdir()
    for number, one in enumerate(pictures(12, 48, 40)):
        Image.fromarray(one.permute(1, 2, 0).numpy()).save(tmp_path / "val2014" / f"{number}.png")
    save_clip(tmp_path / "clip")
    command = ["evaluate", str(run), "--suite", "coco30k", "--subset", "10", "--resolution", "32"]
    command += ["--prompts", str(tmp_path / "captions.json"), "--teacher", "none"]
    command += ["--reference", str(tmp_path / "val2014"), "--clip", str(tmp_path / "clip")]
    command += ["--inception", str(save_inception(tmp_path / "inception.pt"))]
    assert main(command) == 0
    [file] = (run / "evaluations").glob("coco30k*.json")
    assert file.stem == "coco30k-subset10-no-teacher-resolution32"
    found = json.loads(file.read_text())
    assert found["samples"] == 10
    assert set(found["student"]["intervals"]) == {
        *("frechet_distance", "recall", "precision", "clip_score")
    }
    assert found["reference"]["resolution"] == 32
    assert "clean" in found["networks"]["distance"]["name"]


def test_statistics_from_a_file(
    run: Path,
    parts: Path,
    measured: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The file that an evaluation left serves another one; of other pictures' size or without what
    recall needs, it does not."""
    from stack.evaluate.classifier import load_classifier
    from stack.evaluate.reference import load_reference

    [file] = (run / "evaluations" / "references").glob("tiny-*.safetensors")
    command = ["evaluate", str(run), "--suite", str(parts / "suite.yaml"), "--teacher", "none"]
    assert main([*command, "--reference", str(file)]) == 0
    found = json.loads((run / "evaluations" / "tiny-no-teacher.json").read_text())
    assert found["student"]["recall"] == measured["student"]["recall"]
    capsys.readouterr()
    told = refused(capsys, *command, "--reference", file, "--resolution", "8")
    assert told.startswith(f"{file}: resolution: of pictures of their own size, not of 8; ")
    kept = load_reference(file, load_classifier(parts / "judge"))
    bare = tmp_path / "bare.safetensors"
    replace(kept, features=None).save(bare)
    told = refused(capsys, *command, "--reference", bare)
    assert told.startswith(f"{bare}: features: not kept, and recall and precision need them; ")
    assert main([*command, "--reference", str(bare), "--measure", "frechet_distance"]) == 0
