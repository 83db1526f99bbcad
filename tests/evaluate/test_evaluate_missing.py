"""``stack evaluate --suite`` where something is missing or wrong: one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack.config.load import dump_recipe, load_recipe
from stack.evaluate.inception import SOURCE
from tests.cli.refusal import refused
from tests.evaluate.suite_files import brief_run, save_parts
from tests.forked import ROOT
from tests.pipeline import World


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return brief_run(world, tmp_path_factory.mktemp("suites"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_parts(tmp_path_factory.mktemp("parts"))


MISSING = [
    # arguments after the run, what the line begins with, what it holds
    (["--suite", "coco30k"], "--inception: missing: it comes from ", SOURCE),
    (["--suite", "parti"], "--clip: missing: it comes from ", "huggingface.co/laion"),
    (["--suite", "hpsv2", "--measure", "hps_score"], "--hps: missing", "xswu/HPSv2"),
    (["--suite", "cifar10"], "--inception: missing", "or set evaluation.networks.inception"),
    (["--suite", "cifar100"], "suite: cifar100: neither one of ", "docs/evaluation.md"),
    (["--suite", "parti", "--measure", "recall"], "--measure: recall: the suite has ", "clip"),
    (["--suite", "parti", "--clip", "/no/such"], "/no/such: no such file", "any in transformers"),
    (
        ["--suite", "cifar10", "--classifier", "{judge}", "--subset", "50001"],
        "--subset: 50001",
        "50000",
    ),
    (
        ["--suite", "cifar10", "--classifier", "{judge}", "--subset", "9"],
        "--subset: 9",
        "at least 10",
    ),
    (["--suite", "coco30k", "--inception", "/no.pt"], "/no.pt: no such file; inception", SOURCE),
]


@pytest.mark.parametrize(("arguments", "begins", "holds"), MISSING)
def test_what_is_missing(
    run: Path,
    parts: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    begins: str,
    holds: str,
) -> None:
    arguments = [one.format(judge=parts / "judge") for one in arguments]
    told = refused(capsys, "evaluate", run, *arguments)
    assert told.startswith(begins)
    assert holds in told


def test_missing_captions_and_pictures(
    run: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--suite", "parti", "--clip", str(parts / "clip"), "--measure", "clip_score"]
    told = refused(capsys, "evaluate", run, *options)
    assert told.startswith("--prompts: missing: the captions of parti, from https://github.com")
    options = ["--suite", "coco30k", "--prompts", str(parts / "captions.txt"), "--subset", "10"]
    options += ["--classifier", str(parts / "judge"), "--measure", "frechet_distance"]
    told = refused(capsys, "evaluate", run, *options)
    assert told.startswith("--reference: missing: the real pictures of coco30k, from https://coco")


def test_a_model_that_is_not_there_is_told_before_real_pictures_are_read(
    parts: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--suite", "coco30k", "--prompts", parts / "captions.txt", "--subset", "10"]
    options += ["--classifier", parts / "judge", "--measure", "recall"]
    told = refused(capsys, "evaluate", tmp_path / "rum", *options, "--reference", tmp_path / "none")
    assert told.startswith(f"{tmp_path}/rum: ")


def test_a_pipeline_has_no_suite_of_its_own(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "a pipeline needs --suite" in refused(capsys, "evaluate", world.teacher)
    told = refused(capsys, "evaluate", world.teacher, "--suite", "digits")
    assert told.startswith("--suite: digits: ")


@pytest.mark.parametrize("suite", [(), ("--suite", "parti")])
@pytest.mark.parametrize(
    ("recipe", "job"), [("digits_teacher", "pretrain"), ("cifar10_small_teacher", "pretrain_edm")]
)
def test_a_run_that_made_a_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, job: str, suite: tuple
) -> None:
    stored = dump_recipe(load_recipe(ROOT / "recipes" / f"{recipe}.yaml"))
    (tmp_path / "recipe.yaml").write_text(stored)
    told = refused(capsys, "evaluate", tmp_path, *suite)
    assert told.startswith(f"{tmp_path}: job: {job}: a run of stack pretrain; ")
    assert told.endswith(f" {tmp_path}/teacher --suite NAME")


BAD_FILES = [
    ("name: [", "not readable as YAML"),
    ("- a", "not a suite (docs/evaluation.md); captions go to --prompts"),
    ("a red cat\nthree dogs\n", "not a suite (docs/evaluation.md); captions go to --prompts"),
    ("a: sign: that\n", "captions go to --prompts"),
    ("{name: x, measures: [clip_score]}", "give either this or classes"),
    ("{name: x, prompts: a, classes: 3, measures: [clip_score]}", "and not both"),
    ("{name: x, prompts: a, measures: [fid]}", "measures.0: "),
    ("{name: x, prompts: a, measures: [in_batch_similarity]}", "per_prompt: "),
    ("{name: x, prompts: a, measures: [class_accuracy]}", "for classes, not for prompts"),
    ("{name: x, prompts: a, measures: [clip_score], size: 3}", "size: "),
]


@pytest.mark.parametrize(("text", "expected"), BAD_FILES)
def test_a_suites_file_that_is_not_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str
) -> None:
    (tmp_path / "suite.yaml").write_text(text)
    told = refused(capsys, "evaluate", run, "--suite", tmp_path / "suite.yaml")
    assert told.startswith(f"{tmp_path}/suite.yaml: ")
    assert expected in told
