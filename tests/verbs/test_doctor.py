"""stack doctor: everything that is wrong is found, and its node named."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from stack.cli import main
from stack.config.load import load_recipe
from stack.verbs import doctor_inputs, doctor_machine
from stack.verbs.doctor import doctor
from stack.verbs.doctor_findings import attempt
from stack.verbs.doctor_networks import attention_shapes, checkpoint_bytes
from tests import forked
from tests.edm_world import EdmWorld, distill_fields, make_edm_world, pretrain_edm_fields
from tests.pipeline import (
    World,
    copy,
    finish,
    pretrain_fields,
    recipe_fields,
    state_of,
    write_recipe,
)

CHECKS = (
    *("machine", "packages", "teacher", "metrics", "attention", "data", "space", "layout"),
    "collectives",
)
Fields = dict[str, Any]


def check(folder: Path, fields: Fields, *overrides: str) -> tuple[int, dict[str, Any]]:
    """Exit status and JSON of one process."""
    recipe = load_recipe(write_recipe(folder, fields), overrides)
    code = doctor(recipe, json_file=folder / "doctor.json")
    return code, json.loads((folder / "doctor.json").read_text())


def failures(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, one["text"])
        for name, found in result["checks"].items()
        for one in found
        if one["level"] == "fail"
    ]


RECIPES: dict[str, Callable[[World], Fields]] = {
    "distill": recipe_fields,
    "distill, bf16": lambda world: recipe_fields(world, precision="bf16"),
    "pretrain": pretrain_fields,
    "mixture": lambda world: {
        **{key: value for key, value in recipe_fields(world).items() if key != "data"},
        "teacher": {"kind": "mixture2d"},
        "global_batch": 8,
    },
}


EDM_RECIPES: dict[str, Callable[[EdmWorld], Fields]] = {
    "edm": distill_fields,
    "pretrain edm": pretrain_edm_fields,
}


@pytest.mark.parametrize("name", [*RECIPES, *EDM_RECIPES])
def test_all_is_well(
    name: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in RECIPES:
        fields = RECIPES[name](world)
    else:
        fields = EDM_RECIPES[name](make_edm_world(tmp_path / "edm"))
    code, result = check(tmp_path, fields)
    out = capsys.readouterr().out
    assert (code, result["ok"], result["ranks"]) == (0, True, 1), out
    assert tuple(result["checks"]) == CHECKS
    assert all(result["checks"].values())
    assert result["seconds"] < 60
    assert [line.split()[0] for line in out.splitlines() if line[0] != " "][:-1] == list(CHECKS)
    assert out.splitlines()[-1].startswith("0 failed, ")
    assert not list(tmp_path.rglob(".doctor*"))
    assert not (tmp_path / "run").exists()


def _no_manifest(root: Path, fields: Fields, patch: pytest.MonkeyPatch) -> None:
    (root / "data" / "manifest.json").unlink()


def _damaged_shard(root: Path, fields: Fields, patch: pytest.MonkeyPatch) -> None:
    path = root / "data" / "000000.tar"
    data = bytearray(path.read_bytes())
    for start in range(600, len(data), 64):
        data[start] ^= 255
    path.write_bytes(data)


def _damaged_sample(root: Path, fields: Fields, patch: pytest.MonkeyPatch) -> None:
    """Headers stay whole."""
    path = root / "data" / "000000.tar"
    path.write_bytes(path.read_bytes().replace(b"\x93NUMPY", b"\x93BUMPY"))


def _no_field(root: Path, fields: Fields, patch: pytest.MonkeyPatch) -> None:
    path = root / "data" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["fields"] = {"png": manifest["samples"]}
    path.write_text(json.dumps(manifest))


def _no_weights(root: Path, fields: Fields, patch: pytest.MonkeyPatch) -> None:
    for path in (root / "teacher" / "unet").glob("*.safetensors"):
        path.unlink()


def _full_disk(root: Path, fields: Fields, patch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    patch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))


def _unwritable(root: Path, fields: Fields, patch: pytest.MonkeyPatch) -> None:
    """Refused to root as well, as tests may run."""
    fields["out"] = "/proc/self/run"


def _no_judge(root: Path, fields: Fields, patch: pytest.MonkeyPatch) -> None:
    fields["evaluation"] = {"judge": "nowhere/judge.safetensors"}


def _no_start(root: Path, fields: Fields, patch: pytest.MonkeyPatch) -> None:
    fields["init_from"] = str(root)


def _wrong_attention(root: Path, fields: Fields, patch: pytest.MonkeyPatch) -> None:
    real = torch.nn.functional.scaled_dot_product_attention
    wrong = lambda *args, **options: 1.1 * real(*args, **options)  # noqa: E731
    patch.setattr(torch.nn.functional, "scaled_dot_product_attention", wrong)


def _no_operator(root: Path, fields: Fields, patch: pytest.MonkeyPatch) -> None:
    fields["compute"] = {"attention": "xformers"}


BROKEN = {
    _no_manifest: ("data", "data/manifest.json: missing"),
    _damaged_shard: ("data", "data/000000.tar: "),
    _damaged_sample: ("data", "data/000000.tar: 000000: latent.npy: crc32 does not match"),
    _no_field: (
        "data",
        "data: no tokens nor text in these shards; run `python -m data_prep captions`",
    ),
    _no_weights: ("teacher", "teacher/unet/diffusion_pytorch_model.safetensors: missing"),
    _full_disk: ("space", "less free than the"),
    _unwritable: ("space", "/proc/"),
    _no_judge: ("teacher", "evaluation.judge: nowhere/judge.safetensors: missing"),
    _no_start: ("teacher", "init_from: "),
    _wrong_attention: ("attention", "off plain mathematics, 0.001 allowed"),
    _no_operator: ("attention", "compute.attention: xformers: does not run on cpu"),
}


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda f: f.__name__)
def test_what_is_broken_is_named(
    breaks: Callable[..., None], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = World(
        copy(world.teacher, tmp_path / "teacher"), world.shards, copy(world.data, tmp_path / "data")
    )
    fields = recipe_fields(here)
    breaks(tmp_path, fields, monkeypatch)
    code, result = check(tmp_path / "job", fields)
    assert code == 1
    assert not result["ok"]
    name, text = BROKEN[breaks]
    found = failures(result)
    assert any(where == name and text in told for where, told in found), found
    assert len({told for _, told in found}) == len(found)
    assert all(result["checks"][other] or other in {w for w, _ in found} for other in CHECKS[:4])


def test_what_training_would_refuse(world: World, tmp_path: Path) -> None:
    fields = recipe_fields(world, parallel={"accumulation": 3})
    _, result = check(tmp_path, fields)
    text = "parallel.accumulation: 1 ranks of 3 micro-batches do not divide the global batch 8"
    assert failures(result) == [("layout", text)]


def test_ranks_that_the_lanes_do_not_take(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stack.parallel.collectives import Ranks
    from stack.verbs.doctor import _layout

    fields = recipe_fields(world, parallel={"backend": "ddp"})
    path = write_recipe(tmp_path, fields)
    found = attempt(lambda: _layout(load_recipe(path, ["data.lanes=2"]), Ranks(0, 4)))
    assert [one.level for one in found] == ["fail"]
    assert "4 does not divide lanes 2; legal: 1, 2" in found[0].text
    monkeypatch.setenv("WORLD_SIZE", "4")
    alone = load_recipe(path, ["parallel.backend=none"])
    [refused] = attempt(lambda: _layout(alone, Ranks(0, 4)))
    assert refused.text.startswith("parallel.backend: none is one process, but the launcher")


def test_ranks_of_a_node_share_the_folders(world: World, tmp_path: Path) -> None:
    """Each reads some, together all; what is broken has a line of its own."""
    folders = [copy(world.data, tmp_path / f"part-{number}") for number in range(5)]
    (folders[4] / "manifest.json").unlink()
    spec, wanted = f"{tmp_path}/part-*", [("latent",), ("tokens",)]

    def found(place: int, ranks: int) -> list[str]:
        check = partial(doctor_inputs.data, [spec], wanted, cache=None, retries=0, rank=place)
        return [one.text for one in check(share=(place, ranks))]

    whole, broken = f"{spec}: 5 folders, read at", f"{folders[4]}/manifest.json: missing"
    assert [text.startswith((broken, whole)) for text in found(0, 1)] == [True, True]
    assert found(0, 2)[1:] == [whole]  # 0, 2 and 4.
    assert found(1, 2) == [whole]  # 1 and 3.
    assert found(4, 8)[0].startswith(broken)
    assert found(5, 8) == [whole]  # 0 again.


def test_packages_other_than_pinned_are_told(tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text("torch==1.0.0\nnot-used-here==3\n")
    told = [one.text for one in doctor_machine.packages("none", pins) if one.level == "warn"]
    assert told == [f"torch {version('torch')}, but requirements.txt pins 1.0.0"]


def test_a_checkpoint_is_as_large_as_foretold(world: World, tmp_path: Path) -> None:
    fields = recipe_fields(world, ema_also=[0.5])
    run = finish(tmp_path, fields)
    tensors, _ = state_of(run)
    size = sum(value.nbytes for value in tensors.values())
    assert checkpoint_bytes(load_recipe(run / "recipe.yaml")) == pytest.approx(size, rel=0.03)


@pytest.mark.parametrize("job", ["distill", "pretrain"])
def test_a_checkpoint_of_an_edm_network_is_as_large_as_foretold(tmp_path: Path, job: str) -> None:
    world = make_edm_world(tmp_path / "edm")
    fields = distill_fields(world) if job == "distill" else pretrain_edm_fields(world)
    assert main([job, str(write_recipe(tmp_path, fields))]) == 0
    tensors, _ = state_of(tmp_path / "run")
    size = sum(value.nbytes for name, value in tensors.items() if not name.startswith("rng"))
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert checkpoint_bytes(recipe) == pytest.approx(size, rel=0.03)


def test_an_edm_network_that_is_not_there(tmp_path: Path) -> None:
    world = make_edm_world(tmp_path / "edm")
    (world.teacher / "network.safetensors").unlink()
    _, result = check(tmp_path, distill_fields(world))
    told = [text for name, text in failures(result) if name == "teacher"]
    assert told
    assert "network.safetensors: no such file" in told[0]


def test_attention_layers_come_from_the_configurations(world: World, tmp_path: Path) -> None:
    teacher = copy(world.teacher, tmp_path / "teacher")
    path = teacher / "unet" / "config.json"
    config = json.loads(path.read_text())
    config |= {"block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20]}
    config |= {"down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]}
    path.write_text(json.dumps(config | {"cross_attention_dim": 1024}))
    fields = recipe_fields(World(teacher, world.shards, world.data))
    recipe = load_recipe(write_recipe(tmp_path, fields))
    assert attention_shapes(recipe) == [(320, 5, 1024), (640, 10, 1024), (1280, 20, 1024)]


FAULTS = {
    "none": [],
    "slow_link": [("collectives", "node01", "rank 1 to rank 0: ")],
    "other_torch": [("packages", "node01", f"torch 2.11.0, the others {version('torch')}")],
    "own_disk": [("space", "node01", "does not show within 0 s what rank 0 wrote there")],
    "absent": [("collectives", "", "did not come within")],
    "dies": [("collectives", "node01", "silent at space after")],
    "bug": [("space", "node01", "ZeroDivisionError: division by zero")],
}
"""What each fault of the second of two ranks must lead to: check, node, words."""


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_several_nodes(fault: str, world: World, tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path, recipe_fields(world)), tmp_path / "doctor.json"
    code = forked.run("tests.verbs.doctor_ranks", fault, recipe, out, ranks=2).returncode
    result = json.loads(out.read_text())
    found = [
        (name, one["host"], one["text"], one["ranks"])
        for name, entries in result["checks"].items()
        for one in entries
        if one["level"] == "fail"
    ]
    assert code == int(bool(FAULTS[fault])), found
    assert (result["ranks"], result["ok"]) == (2, not FAULTS[fault])
    for (name, host, text, ranks), wanted in zip(found, FAULTS[fault], strict=True):
        assert (name, host) == wanted[:2]
        assert wanted[2] in text
        assert ranks == [1]
    assert not list(tmp_path.rglob(".doctor*"))
    assert result["seconds"] < 60
    texts = [one["text"] for one in result["checks"]["collectives"]]
    assert any("GB/s" in text for text in texts) == (fault not in ("absent", "dies"))
