"""Bad data and teachers: one line that names file and field, and nothing written over."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.shards import ShardFolder, Tally
from stack.data.index import Manifest, fingerprint
from tests.cli.refusal import refused
from tests.pipeline import (
    World,
    copy,
    pretrain_fields,
    recipe_fields,
    tree,
    write_recipe,
)

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def rewrite(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def no_samples(data: Path) -> None:
    shutil.rmtree(data)
    data.mkdir()
    Manifest(samples=0, fields={}, fingerprint=fingerprint(()), shards=()).write(data)


DATA: list[tuple[str, Callable[[Path], Any], str]] = [
    # what is wrong with the data folder, how it came about, the message
    ("missing", shutil.rmtree, "{data}: no such folder of shards"),
    ("empty", lambda data: [p.unlink() for p in data.iterdir()], "{data}/manifest.json: missing;"),
    ("without samples", no_samples, "{data}: samples: the dataset is empty"),
    (
        "a shard missing",
        lambda data: (data / "000001.tar").unlink(),
        "{data}/000001.tar: missing, but listed in {data}/manifest.json",
    ),
    (
        "a shard cut short",
        lambda data: cut(data / "000001.tar"),
        "{data}/000001.tar: bytes: ",
    ),
    (
        "an index missing",
        lambda data: (data / "000001.index.npy").unlink(),
        "{data}/000001.index.npy: missing, but listed in manifest.json",
    ),
    (
        "another number of samples",
        lambda data: rewrite(data / "manifest.json", samples=51),
        "{data}/manifest.json: samples: 51, but its shards add up to 52",
    ),
    (
        "another fingerprint",
        lambda data: rewrite(data / "manifest.json", fingerprint="0"),
        "{data}/manifest.json: fingerprint: does not match its list of shards",
    ),
    (
        "pictures of another size",
        lambda data: rewrite(data / "manifest.json", resolution=32),
        "{data}/manifest.json: resolution: 32, but the teacher's is 16",
    ),
    (
        "a manifest that is not JSON",
        lambda data: cut(data / "manifest.json"),
        "{data}/manifest.json: not JSON",
    ),
    (
        "latents of another autoencoder",
        lambda data: rewrite(data / "manifest.json", vae={"hash": "0" * 64, "scale": 1.0}),
        "{data}/manifest.json: vae.hash: 000000000000 is not that of {teacher}/vae",
    ),
    (
        "token ids of another tokenizer",
        lambda data: rewrite(data / "manifest.json", tokenizer={"hash": "0" * 64}),
        "{data}/manifest.json: tokenizer.hash: 000000000000 is not that of {teacher}/tokenizer",
    ),
]


@pytest.mark.parametrize(("what", "damage", "message"), DATA, ids=[row[0] for row in DATA])
def test_bad_data(
    tmp_path: Path,
    world: World,
    occupied: Path,
    capsys: pytest.CaptureFixture[str],
    what: str,
    damage: Callable[[Path], Any],
    message: str,
) -> None:
    """--overwrite is given, and yet the old run survives: it is only replaced by one that runs."""
    data = copy(world.data, tmp_path / "data")
    damage(data)
    fields = recipe_fields(world, data={"folders": [str(data)], "global_batch": 8})
    recipe = write_recipe(tmp_path, fields)
    before = tree(tmp_path)
    line = refused(capsys, "distill", recipe, "--overwrite")
    assert line.startswith(message.format(data=data, teacher=world.teacher))
    assert tree(tmp_path) == before


def test_an_index_of_another_shard(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found when the shard is opened."""
    data = copy(world.data, tmp_path / "data")
    shutil.copy(data / "000000.index.npy", data / "000001.index.npy")
    fields = recipe_fields(world, data={"folders": [str(data)], "global_batch": 8})
    line = refused(capsys, "distill", write_recipe(tmp_path, fields))
    expected = "000001.index.npy: index_sha256: not the index that manifest.json lists"
    assert line.startswith(f"{data}/{expected}")


def test_pretraining_on_bad_data(
    tmp_path: Path, world: World, occupied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = pretrain_fields(world, data={"folders": [str(tmp_path / "no")], "global_batch": 8})
    recipe = write_recipe(tmp_path, fields)
    before = tree(tmp_path)
    line = refused(capsys, "pretrain", recipe, "--overwrite")
    assert line == f"{tmp_path}/no: no such folder of shards"
    assert tree(tmp_path) == before


def test_data_without_latents_and_pictures(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = ShardFolder(tmp_path / "captions", {"captions": 64})
    rows = [(f"{n}", {"txt": b"a caption"}) for n in range(64)]
    shards.write("000000.tar", rows, Tally())
    shards.finish()
    fields = recipe_fields(world, data={"folders": [str(shards.out)], "global_batch": 8})
    line = refused(capsys, "distill", write_recipe(tmp_path, fields))
    assert line == f"{shards.out}: latent: not in these shards; run `python -m data_prep latents`"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["no folder", "empty folder", "configuration only"])
def test_a_teacher_that_lacks_a_part(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str], part: str, how: str
) -> None:
    teacher = copy(world.teacher, tmp_path / "teacher")
    configuration = {"config.json", "tokenizer_config.json"} if how == "configuration only" else {}
    for path in (teacher / part).iterdir():
        if path.name not in configuration:
            path.unlink()
    if how == "no folder":
        (teacher / part).rmdir()
    # Without token ids, which tell of the tokenizer they were made with.
    latents = latents_only(world, tmp_path)
    fields = recipe_fields(
        world,
        teacher={"path": str(teacher)},
        data={"folders": [str(latents)], "global_batch": 8},
    )
    line = refused(capsys, "distill", write_recipe(tmp_path, fields))
    assert line.startswith(f"{teacher}")
    assert part in line.removeprefix(str(teacher))
    assert not (tmp_path / "run").exists()


def latents_only(world: World, folder: Path) -> Path:
    """The data before token ids were added."""
    data = copy(world.data.parent / "latents", folder / "latents")
    assert "tokens.npy" not in Manifest.read(data).fields
    return data


TEACHERS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("missing", shutil.rmtree, "{teacher}"),
    (
        "not a pipeline",
        lambda t: (t / "model_index.json").unlink(),
        "{teacher}: model_index.json: ",
    ),
    (
        "an unknown parameterization",
        lambda t: rewrite(t / "scheduler" / "scheduler_config.json", prediction_type="flow"),
        "{teacher}/scheduler/scheduler_config.json: prediction_type: 'flow' is none of",
    ),
    (
        "an unknown schedule",
        lambda t: rewrite(t / "scheduler" / "scheduler_config.json", beta_schedule="sigmoid"),
        "{teacher}/scheduler/scheduler_config.json: beta_schedule: ",
    ),
    (
        "a garbled scheduler",
        lambda t: cut(t / "scheduler" / "scheduler_config.json"),
        "{teacher}/scheduler/scheduler_config.json: not JSON",
    ),
]


@pytest.mark.parametrize(("what", "damage", "message"), TEACHERS, ids=[row[0] for row in TEACHERS])
def test_a_teacher_that_is_none(
    tmp_path: Path,
    world: World,
    capsys: pytest.CaptureFixture[str],
    what: str,
    damage: Callable[[Path], Any],
    message: str,
) -> None:
    teacher = copy(world.teacher, tmp_path / "teacher")
    damage(teacher)
    recipe = write_recipe(tmp_path, recipe_fields(world, teacher={"path": str(teacher)}))
    assert refused(capsys, "distill", recipe).startswith(message.format(teacher=teacher))
    assert not (tmp_path / "run").exists()
