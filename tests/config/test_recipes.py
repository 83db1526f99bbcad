"""From YAML to a recipe: what loads, and what it is then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from stack.config.load import JOBS, dump_recipe, field_table, identity_changes, load_recipe
from stack.config.schema import DistillRecipe
from tests.config.minimal import DISTILL, WHOLE, write

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_base_chain(tmp_path: Path) -> None:
    """The nearest file wins, section by section; a list is replaced whole."""
    (tmp_path / "sub").mkdir()
    write(tmp_path / "a.yaml", DISTILL | {"gan": {"weight": 0.5, "resolutions": [8, 4]}})
    write(tmp_path / "b.yaml", {"base": "a.yaml", "name": "b", "gan": {"width": 8}})
    last = {"base": "../b.yaml", "gan": {"resolutions": [2]}, "optim": {"fake": {"lr": 0.5}}}
    recipe = load_recipe(write(tmp_path / "sub" / "c.yaml", last))
    assert isinstance(recipe, DistillRecipe)
    assert (recipe.name, recipe.out) == ("b", "runs/b")
    assert (recipe.gan.weight, recipe.gan.width, recipe.gan.resolutions) == (0.5, 8, [2])
    assert (recipe.optim.fake.lr, recipe.optim.student.lr) == (0.5, 1e-3)


GOOD_OVERRIDES: list[tuple[str, str, Any]] = [
    ("seed=3", "seed", 3),
    ("optim.student.lr=5e-6", "optim.student.lr", 5e-6),
    ("optim.student.lr=5", "optim.student.lr", 5.0),
    ("gan.resolutions=[16, 8]", "gan.resolutions", [16, 8]),
    ("times.score=[1, 9]", "times.score", (1, 9)),
    ("data.folders=[a, 'b=c']", "data.folders", ["a", "b=c"]),
    ("ratio.normalize_h=false", "ratio.normalize_h", False),
    ("ratio={bins: 3}", "ratio.bins", 3),
    ("log.prompts=[a red one]", "log.prompts", ["a red one"]),
    ("data.weights=", "data.weights", None),
    ("name=other", "out", "runs/other"),
    ("out=/tmp/somewhere", "out", "/tmp/somewhere"),
    ("divergence=rkl", "divergence", "reverse_kl"),
    ("divergence=srkl", "divergence", "softened_reverse_kl"),
    ("divergence=js", "divergence", "jensen_shannon"),
    ("divergence=sh", "divergence", "squared_hellinger"),
    ("divergence=fkl", "divergence", "forward_kl"),
    ("divergence=jeffreys", "divergence", "jeffreys"),
]


@pytest.mark.parametrize(("override", "field", "value"), GOOD_OVERRIDES, ids=str)
def test_override(tmp_path: Path, override: str, field: str, value: Any) -> None:
    found: Any = load_recipe(write(tmp_path / "r.yaml", DISTILL), [override])
    for part in field.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_the_last_override_wins(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", DISTILL)
    assert load_recipe(recipe, ["seed=1", "seed=2"]).seed == 2


def test_an_override_leaves_other_users_of_an_anchor_alone(tmp_path: Path) -> None:
    text = yaml.safe_dump({**DISTILL, "optim": None}).replace(
        "optim: null", "optim: {student: &adam {lr: 0.5}, fake: *adam, heads: *adam}"
    )
    recipe = load_recipe(write(tmp_path / "r.yaml", text), ["optim.fake.lr=0.1"])
    assert isinstance(recipe, DistillRecipe)
    optim = recipe.optim
    assert (optim.student.lr, optim.fake.lr, optim.heads.lr) == (0.5, 0.1, 0.5)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe(path: Path, tmp_path: Path) -> None:
    """It loads, is named like its file, and is the same again after show-config."""
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert load_recipe(write(tmp_path / "again.yaml", dump_recipe(recipe))) == recipe


TABLE_5: dict[str, dict[str, Any]] = {
    "cifar10": {
        "batch_size": 2048,
        "student_every": 5,
        "gan.weight": 1e-3,
        "gan.resolutions": [32, 16, 8],
        "iterations": 60_000,
        "teacher.kind": "edm",
        "guidance": 1,
        "lr": 1e-4,
        "weight_decay": 1e-2,
        "gan.r1_gamma": 1,
    },
    "imagenet64": {
        "batch_size": 512,
        "student_every": 5,
        "gan.weight": 3e-3,
        "gan.resolutions": [8],
        "iterations": 380_000,
        "teacher.kind": "edm",
        "guidance": 1,
        "lr": 2e-6,
        "weight_decay": 1e-2,
        "gan.r1_gamma": 0,
    },
    "coyo": {
        "batch_size": 1024,
        "student_every": 10,
        "gan.weight": 1e-3,
        "gan.resolutions": [8],
        "iterations": 60_000,
        "teacher.kind": "sd",
        "guidance": 1.75,
        "lr": 1e-5,
        "weight_decay": 1e-2,
        "gan.r1_gamma": 1,
    },
}
"""The paper's, row by row; its learning rate and weight decay are every network's."""
NOT_THE_TABLES = ("small", "1gpu", "24gb", "cfg5", "multires", "phase2")
OF_THE_TABLE = [
    path
    for path in RECIPES
    if path.stem.split("_")[0] in TABLE_5 and not {*path.stem.split("_")} & {*NOT_THE_TABLES}
]


def value_of(recipe: Any, field: str) -> Any:
    for part in field.split("."):
        recipe = getattr(recipe, part)
    return recipe


@pytest.mark.parametrize("path", OF_THE_TABLE, ids=lambda path: path.stem)
def test_table_5(path: Path) -> None:
    recipe, row = load_recipe(path), dict(TABLE_5[path.stem.split("_")[0]])
    assert isinstance(recipe, DistillRecipe)
    for name in ("lr", "weight_decay"):
        due, optim = row.pop(name), recipe.optim
        assert [getattr(n, name) for n in (optim.student, optim.fake, optim.heads)] == [due] * 3
    assert {field: value_of(recipe, field) for field in row} == row


def test_table_5_is_that_of_every_divergence() -> None:
    families = {name: {path.stem for path in OF_THE_TABLE if name in path.stem} for name in TABLE_5}
    all_six = ("fkl", "jeffreys", "js", "rkl", "sh", "srkl")
    assert families["cifar10"] == {f"cifar10_{short}" for short in all_six}
    assert families["coyo"] == {f"coyo_{short}" for short in all_six}
    assert families["imagenet64"] == {f"imagenet64_{short}" for short in ("fkl", "js", "rkl")}


def test_the_second_phase_of_imagenet64() -> None:
    first, second = (
        load_recipe(RECIPES[0].with_name(f"imagenet64_js{n}.yaml")) for n in ("", "_phase2")
    )
    assert isinstance(second, DistillRecipe)
    assert second.init_from == first.out
    optim = second.optim
    assert (optim.student.lr, optim.fake.lr, optim.heads.lr) == (5e-7, 5e-7, 5e-7)
    left = {"name", "out", "init_from", "iterations", "optim"}
    assert first.model_dump(exclude=left) == second.model_dump(exclude=left)


def test_there_are_recipes() -> None:
    assert {"digits_js", "digits_teacher"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("kind", WHOLE)
def test_round_trip(tmp_path: Path, kind: str) -> None:
    recipe = load_recipe(write(tmp_path / "r.yaml", WHOLE[kind]), ["seed=5", "log.every=3"])
    text = dump_recipe(recipe)
    again = load_recipe(write(tmp_path / "again.yaml", text))
    assert again == recipe
    assert dump_recipe(again) == text


OPERATIONAL = {
    "distill": {
        "out",
        "teacher.allow_pickle",
        "device",
        "data.folders",
        "data.workers",
        "data.prefetch",
        "data.bad_samples",
        "data.retries",
        "data.cache",
        "data.cache_gb",
        "iterations",
        "parallel.backend",
        "parallel.processes",
        "parallel.accumulation",
        "parallel.micro_batch",
        "parallel.shard_size",
        "parallel.teacher",
        "parallel.offload",
        "compute.checkpointing",
        "compute.attention",
        "compute.compile",
        "parallel.timeout",
        "parallel.watchdog",
        "checkpoint.every",
        "checkpoint.keep_last",
        "checkpoint.keep_every",
        "checkpoint.keep_best",
        "checkpoint.background",
        "log.every",
        "log.sample_every",
        "log.prompts",
        "evaluation.samples",
        "evaluation.ambiguous",
        "evaluation.teacher_steps",
        "evaluation.batch",
        "evaluation.quick_every",
        "evaluation.quick_samples",
        "evaluation.judge",
        "evaluation.suite",
        "evaluation.quick_suite",
        "evaluation.prompts",
        "evaluation.references",
        "evaluation.networks.inception",
        "evaluation.networks.resize",
        "evaluation.networks.clip",
        "evaluation.networks.dino",
        "evaluation.networks.hps",
        "evaluation.networks.hps_tokenizer",
        "evaluation.networks.classifier",
    },
}
OPERATIONAL["pretrain"] = {
    field
    for field in OPERATIONAL["distill"]
    if not field.startswith(("evaluation.", "iterations", "compute.", "teacher."))
}
OPERATIONAL["pretrain_edm"] = OPERATIONAL["pretrain"] | {"edm.steps"}
"""How the same experiment is run; a change of any other field is another experiment."""


@pytest.mark.parametrize("job", JOBS)
def test_identity_and_operational_fields(job: str) -> None:
    marked = {name for name, info in fields_of(JOBS[job]) if info.json_schema_extra}
    assert marked == OPERATIONAL[job]


CHANGES = [
    # override, the identity field that it changes, or None
    ("optim.student.lr=1", "optim.student.lr"),
    ("optim.fake.betas=[0, 0.5]", "optim.fake.betas"),
    ("seed=7", "seed"),
    ("divergence=fkl", "divergence"),
    ("data.global_batch=16", "data.global_batch"),
    ("teacher={kind: mixture2d}", "teacher"),
    ("precision=bf16", "precision"),
    ("iterations=999", None),
    ("data.workers=2", None),
    ("data.folders=[elsewhere]", None),
    ("parallel.accumulation=2", None),
    ("out=elsewhere", None),
    ("log={every: 1, prompts: [x]}", None),
    ("evaluation.samples=3", None),
]


@pytest.mark.parametrize(("override", "field"), CHANGES, ids=str)
def test_identity_changes(tmp_path: Path, override: str, field: str | None) -> None:
    path = write(tmp_path / "r.yaml", DISTILL)
    fields = DISTILL | {"teacher": None} if override.startswith("teacher") else DISTILL
    old, new = load_recipe(path), load_recipe(write(tmp_path / "s.yaml", fields), [override])
    assert [name for name, _, _ in identity_changes(old, new)] == ([field] if field else [])


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field that is not a section, found without field_table."""
    for name, info in model.model_fields.items():
        sections = [part for part in parts(info.annotation) if issubclass(part, BaseModel)]
        if not sections:
            yield prefix + name, info
        for section in sections:
            yield from fields_of(section, f"{prefix}{name}.")


def parts(annotation: Any) -> list[type]:
    inner = [part for arg in getattr(annotation, "__args__", ()) for part in parts(arg)]
    return [annotation] if type(annotation) in (type, type(BaseModel)) else inner


@pytest.mark.parametrize("job", JOBS)
def test_field_table(job: str) -> None:
    table = {name: (default, text) for name, default, text in field_table(JOBS[job])}
    assert set(table) == {name for name, _ in fields_of(JOBS[job])}
    assert not [name for name, (_, text) in table.items() if not text]
    assert table["name"][0] == "required"
    assert table["seed"][0] == "0"
