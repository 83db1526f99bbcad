"""Every message of a recipe that does not load: one line that names file, field and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stack.config.load import load_recipe
from stack.util.errors import UserError
from tests.config.minimal import ADAM, DISTILL, MIXTURE, PRETRAIN, WHOLE, write


def message(path: Path, overrides: list[str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides or [])
    assert "\n" not in str(caught.value)
    return str(caught.value)


OVERRIDES = [
    # which recipe, override, the message behind "command line: "
    ("distill", "guidence=2", "guidence: unknown field; did you mean guidance?"),
    ("distill", "gan.wieght=1", "gan.wieght: unknown field; did you mean gan.weight?"),
    ("distill", "gann.weight=1", "gann: unknown field; did you mean gan?"),
    ("distill", "gann={weight: 1}", "gann: unknown field; did you mean gan?"),
    (
        "distill",
        "optim.studnet.lr=1",
        "optim.studnet: unknown field; did you mean optim.student?",
    ),
    ("distill", "lr=1", "lr: unknown field; did you mean optim.student.lr?"),
    (
        "distill",
        "learning_rate=1",
        "learning_rate: unknown field; see stack show-config --fields",
    ),
    ("distill", "data.lane=2", "data.lane: unknown field; did you mean data.lanes?"),
    ("distill", "teacher.paht=x", "teacher.paht: unknown field; did you mean teacher.path?"),
    ("mixture", "teacher.mode=2", "teacher.mode: unknown field; did you mean teacher.modes?"),
    ("edm", "teacher.levls=9", "teacher.levls: unknown field; did you mean teacher.levels?"),
    ("pretrain_edm", "edm.with=8", "edm.with: unknown field; did you mean edm.width?"),
    ("pretrain_edm", "edm.width=6", "edm.width: should be a multiple of 4 (got 6)"),
    ("pretrain_edm", "parallel.backend=fsdp", "parallel.backend: fsdp, but a teacher is"),
    ("pretrain_edm", "parallel.micro_batch=2", "parallel.micro_batch: 2, but pretraining has no"),
    ("mixture", "teacher.path=x", "teacher.path: unknown field"),
    ("pretrain", "vea.batch=2", "vea: unknown field; did you mean vae?"),
    ("pretrain", "unet.chanels=2", "unet.chanels: unknown field; did you mean unet.channels?"),
    ("distill", "job=distil", "job: must be one of distill, pretrain, pretrain_edm (got 'distil')"),
    ("distill", "job=", "job: must be one of distill, pretrain, pretrain_edm (got None)"),
    ("distill", "teacher.kind=sdd", "teacher.kind: must be one of sd, edm, mixture2d (got 'sdd')"),
    ("distill", "teacher=x", "teacher: must be a section with fields of its own (got 'x')"),
    ("distill", "gan=3", "gan: must be a section with fields of its own (got 3)"),
    ("distill", "optim.student=", "optim.student: must be a section with fields of its own"),
    ("distill", "seed=many", "seed: should be a valid integer"),
    ("distill", "iterations=2.5", "iterations: should be a valid integer"),
    ("distill", "iterations=", "iterations: should be a valid integer (got None)"),
    ("distill", "guidance=high", "guidance: should be a valid number"),
    ("distill", "ratio.normalize_r=2", "ratio.normalize_r: should be a valid boolean"),
    ("distill", "name=[a]", "name: should be a valid string (got ['a'])"),
    ("distill", "name=a/b", "name: string should match pattern"),
    ("distill", "data.folders=shards", "data.folders: should be a valid list (got 'shards')"),
    ("distill", "data.folders=[1]", "data.folders.0: should be a valid string (got 1)"),
    ("distill", "data.folders=[]", "data.folders: list should have at least 1 item"),
    ("distill", "times.score=5", "times.score: should be a valid tuple (got 5)"),
    ("distill", "times.score=[5]", "times.score: too few values (got [5])"),
    ("distill", "divergence=kl", "divergence: should be 'reverse_kl', 'softened_reverse_kl',"),
    ("distill", "divergence=[js]", "divergence: should be 'reverse_kl'"),
    ("distill", "precision=fp8", "precision: should be 'fp32' or 'bf16' (got 'fp8')"),
    ("distill", "seed=-1", "seed: should be greater than or equal to 0 (got -1)"),
    ("distill", "iterations=0", "iterations: should be greater than 0 (got 0)"),
    ("distill", "ema=1", "ema: should be less than 1 (got 1)"),
    ("distill", "ema=.nan", "ema: should be"),
    ("distill", "guidance=.inf", "guidance: should be a finite number (got inf)"),
    ("distill", "optim.fake.lr=0", "optim.fake.lr: should be greater than 0 (got 0)"),
    ("distill", "checkpoint.keep_last=1", "checkpoint.keep_last: should be greater than or equal"),
    ("distill", "times.score=[9, 1]", "times.score: the first time 9 is above the last one 1"),
    ("distill", "ratio.r_min=30", "ratio.r_min: 30.0 is not below r_max 20.0"),
    ("distill", "global_batch=8", "global_batch: give either this or a data section, and not both"),
    (
        "pretrain",
        "parallel.accumulation=2",
        "parallel.accumulation: 2, but pretraining has no micro-batches",
    ),
    ("distill", "data.lanes=3", "data.lanes: 3 does not divide the global batch 8"),
    ("distill", "data.weights=[1, 2]", "data.weights: 2 of them for 1 folders"),
    ("distill", "data=", "data: missing; give data.folders and data.global_batch"),
    ("mixture", "global_batch=", "global_batch: give either this or a data section"),
    ("distill", "parallel.processes=2", "parallel.processes: 2, but backend: none is one process"),
    ("pretrain", "vae.groups=3", "vae.groups: 3 does not divide 8 channels"),
    ("pretrain", "text.heads=3", "text.heads: 3 does not divide 32 channels"),
    ("pretrain", "unet.groups=3", "unet.groups: 3 does not divide 8 channels"),
    ("pretrain", "unet.heads=3", "unet.heads: 3 does not divide 8 channels"),
    ("pretrain", "unet.attention=[true, true]", "unet.attention: 2 levels, but 1 of channels"),
    ("distill", "guidance", "guidance: not of the form section.field=value"),
    ("distill", "=2", "=2: not of the form section.field=value"),
    ("distill", "gan.weight=[", "gan.weight: '[' is not a YAML value"),
    ("distill", "guidance.weight=1", "guidance.weight: guidance is not a section"),
    ("distill", "base=other.yaml", "base: unknown field"),
]


@pytest.mark.parametrize(("kind", "override", "expected"), OVERRIDES, ids=lambda value: str(value))
def test_message_of_a_bad_override(tmp_path: Path, kind: str, override: str, expected: str) -> None:
    fields = {**WHOLE[kind], "guidance": 1.0} if kind == "distill" else WHOLE[kind]
    recipe = write(tmp_path / "r.yaml", fields)
    assert message(recipe, [override]).startswith(f"command line: {expected}")


FILES: list[tuple[Any, str]] = [
    # what the file holds, the message behind "FILE: "
    (DISTILL | {"guidence": 2}, "guidence: unknown field; did you mean guidance?"),
    (DISTILL | {"gann": {"weight": 1}}, "gann: unknown field; did you mean gan?"),
    (
        DISTILL | {"gan": {"weight": -1}},
        "gan.weight: should be greater than or equal to 0 (got -1)",
    ),
    ({k: v for k, v in DISTILL.items() if k != "divergence"}, "divergence: missing; give it in"),
    (DISTILL | {"teacher": {}}, "teacher.path: missing; give it in the recipe or as teacher.path="),
    (DISTILL | {"optim": {"student": ADAM}}, "optim.fake: missing; give it in the recipe or as"),
    ({k: v for k, v in DISTILL.items() if k != "data"}, "data: missing; give data.folders and"),
    (MIXTURE | {"teacher": {"path": "x"}}, "data: missing; give data.folders and"),
    (
        DISTILL | {"alternation": "exclusive", "student_every": 1},
        "student_every: must be at least 2 with alternation exclusive",
    ),
    ({k: v for k, v in PRETRAIN.items() if k != "vae"}, "vae: missing; give it in the recipe or"),
    ("name: [x", "not readable as YAML ("),
    ("name: \x00", "not readable as YAML ("),
    ("- a\n- b\n", "not a mapping of fields to values"),
    ("", "not a mapping of fields to values"),
    (DISTILL | {"base": "nowhere.yaml"}, "base: nowhere.yaml: no such file"),
    (DISTILL | {"base": 7}, "base: 7: no such file"),
    (DISTILL | {"base": "r.yaml"}, "base: r.yaml leads back to itself"),
]


@pytest.mark.parametrize(("content", "expected"), FILES, ids=[text for _, text in FILES])
def test_message_of_a_bad_file(tmp_path: Path, content: Any, expected: str) -> None:
    recipe = write(tmp_path / "r.yaml", content)
    assert message(recipe).startswith(f"{recipe}: {expected}")


def test_message_of_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        assert message(path).startswith(f"{path}: ")
    assert "no such recipe" in message(tmp_path / "none.yaml")


def test_message_of_a_fault_in_the_base(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "a: [")
    recipe = write(tmp_path / "r.yaml", {"base": "base.yaml"})
    assert message(recipe).startswith(f"{tmp_path / 'base.yaml'}: not readable as YAML")


def test_base_cycle(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", DISTILL | {"base": "b.yaml"})
    write(tmp_path / "b.yaml", {"base": "a.yaml"})
    assert message(tmp_path / "a.yaml") == f"{tmp_path}/b.yaml: base: a.yaml leads back to itself"


SECRETS = [
    "https://user:p/SECRET@host/x",
    "https://user:p?SECRET@host/x",
    "s3://KEY:SE'C \"RET@bucket/x",
    "https://SECRET@host/x",
    "abfs://container:SECRET@account.dfs.core.windows.net/x",
    "https://host/x?SECRET",
    "s3://bucket/x?sig=SECRET",
]


@pytest.mark.parametrize("folder", SECRETS)
def test_a_literal_secret_is_refused_and_not_shown(tmp_path: Path, folder: str) -> None:
    data = {"folders": ["plain", folder], "global_batch": 8}
    recipe = write(tmp_path / "r.yaml", DISTILL | {"data": data})
    told = message(recipe)
    assert told.startswith(f"{recipe}: data.folders: the URL of entry 1 holds a password or")
    assert "SECRET" not in told


PUBLIC = [
    "s3://bucket/part-?",
    "s3://bucket/v@2/x",
    "abfs://container@account.dfs.core.windows.net/x",
    "hf://datasets/me/set@main/x",
    "http://host:8080/x",
    "$SHARDS/x-?",
]


@pytest.mark.parametrize("folder", PUBLIC)
def test_a_url_without_secrets_is_accepted(tmp_path: Path, folder: str) -> None:
    data = {"folders": [folder], "global_batch": 8}
    recipe = load_recipe(write(tmp_path / "r.yaml", DISTILL | {"data": data}))
    assert recipe.data is not None
    assert recipe.data.folders == [folder]
