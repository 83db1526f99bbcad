"""What goes into a checkpoint comes out, and what is damaged is never used."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stack.checkpoint import read, verify
from stack.util.errors import UserError
from tests.checkpoint.samples import cut, flip, names, save

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
)
SHAPES = ((), (0,), (7,), (2, 3, 4))


def random_bits(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor whose bytes are random, NaNs and denormals included; for bool 0 or 1."""
    count = torch.Size(shape).numel() * dtype.itemsize
    if dtype is torch.bool:
        return torch.randint(0, 2, shape).bool()
    return torch.randint(0, 256, (count,), dtype=torch.uint8).view(dtype).reshape(shape)


def bits(value: Tensor) -> Tensor:
    return value.contiguous().flatten().view(torch.uint8)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = {f"{d}/{s}": random_bits(s, d) for d in DTYPES for s in SHAPES}
    saved["a view"] = torch.arange(12.0).reshape(3, 4).T[1:]
    before = {name: value.clone() for name, value in saved.items()}
    folder = save(tmp_path, 3, saved)
    assert verify.fault(folder) is None
    assert verify.latest(tmp_path) == (folder, [])

    target = {name: torch.zeros_like(value) for name, value in saved.items()}
    places = {name: value.data_ptr() for name, value in target.items()}
    state = read.load_into(folder, target)
    assert state == {"iteration": 3, "nested": {"list": [1, "two", None]}}
    for name, value in before.items():
        assert torch.equal(bits(target[name]), bits(value)), name
        assert target[name].data_ptr() == places[name], f"{name} was not filled in place"
    assert (folder / "recipe.yaml").read_text() == "name: x\n"
    assert read.code_hash(folder) == "c0"


@pytest.mark.parametrize("file", ["COMMIT.json", "state.json", "__0_0.distcp"])
def test_what_cannot_be_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """A disk that fails under the newest checkpoint."""
    save(tmp_path, 1)
    bad = save(tmp_path, 2) / file
    read_text, digest = Path.read_text, verify.sha256_file

    def fail(path: Path, read: Any) -> Any:
        if path == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_text", lambda path: fail(path, read_text))
    monkeypatch.setattr(verify, "sha256_file", lambda path: fail(path, digest))
    reason = f"{bad.parent}: {file} cannot be read (Input/output error)"
    assert verify.latest(tmp_path) == (tmp_path / "step-0000001", [reason])


def test_some_tensors_by_prefix(tmp_path: Path) -> None:
    saved = {
        "ema.unet.a": torch.ones(2),
        "ema.unet.b": torch.zeros(3),
        "ema2.unet.c": torch.ones(1),
    }
    folder = save(tmp_path, 1, saved)
    found = read.read_tensors(folder, "ema.unet.")
    assert set(found) == {"a", "b"}
    assert torch.equal(found["a"], torch.ones(2))
    with pytest.raises(UserError, match=r"step-0000001: fake\.: no such tensors"):
        read.read_tensors(folder, "fake.")


MISFITS: list[tuple[str, dict[str, Tensor]]] = [
    # the tensor to be named, what the run wants
    ("extra", {"a": torch.zeros(3)}),
    ("missing", {"a": torch.zeros(3), "extra": torch.zeros(2), "missing": torch.zeros(1)}),
    ("a", {"a": torch.zeros(4), "extra": torch.zeros(2)}),
    ("a", {"a": torch.zeros(3, 1), "extra": torch.zeros(2)}),
    ("a", {"a": torch.zeros(3, dtype=torch.float64), "extra": torch.zeros(2)}),
    ("a", {"a": torch.zeros(3, dtype=torch.bfloat16), "extra": torch.zeros(2)}),
]


@pytest.mark.parametrize(("name", "wanted"), MISFITS)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, wanted: dict[str, Tensor]
) -> None:
    folder = save(tmp_path, 1, {"a": torch.ones(3), "extra": torch.ones(2)})
    with pytest.raises(UserError, match=rf"^{folder}: {name}: the checkpoint has .*, the run "):
        read.load_into(folder, wanted)
    assert not any(value.any() for value in wanted.values()), "a refused load changed something"


def garble(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text) and None


DAMAGE: list[tuple[str, Callable[[Path], Any], str]] = [
    ("__0_0.distcp", flip, "__0_0.distcp does not match its SHA-256"),
    (".metadata", flip, ".metadata does not match its SHA-256"),
    ("state.json", flip, "state.json does not match its SHA-256"),
    ("recipe.yaml", flip, "recipe.yaml does not match its SHA-256"),
    ("__0_0.distcp", cut, "__0_0.distcp has "),
    ("__0_0.distcp", Path.unlink, "__0_0.distcp is missing"),
    ("state.json", Path.unlink, "state.json is missing"),
    ("COMMIT.json", Path.unlink, "COMMIT.json is missing"),
    ("COMMIT.json", cut, "COMMIT.json is garbled"),
    ("COMMIT.json", garble(""), "COMMIT.json is garbled"),
    ("COMMIT.json", garble("{}"), "COMMIT.json is garbled"),
    ("COMMIT.json", garble("[]"), "COMMIT.json is garbled"),
    ("COMMIT.json", garble('{"files": 3}'), "COMMIT.json is garbled"),
    ("COMMIT.json", garble('{"files": {"state.json": {}}}'), "COMMIT.json is garbled"),
    ("COMMIT.json", lambda path: path.write_bytes(b"\xff\xfe{"), "COMMIT.json is garbled"),
]


@pytest.mark.parametrize(("file", "damage", "reason"), DAMAGE, ids=[row[2] for row in DAMAGE])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, file: str, damage: Callable[[Path], Any], reason: str
) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    damage(newer / file)
    found, skipped = verify.latest(tmp_path)
    assert found == older
    assert len(skipped) == 1
    assert skipped[0].startswith(f"{newer}: {reason}")
    damage(older / file)
    with pytest.raises(
        UserError, match=f"^{tmp_path}: no checkpoint verifies .*--overwrite"
    ) as all_:
        verify.latest(tmp_path)
    assert str(all_.value).count(reason) == 2
    assert names(tmp_path) == ["step-0000001", "step-0000002"], "nothing may be removed"


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    (tmp_path / ".staging-1-x").mkdir()
    assert verify.latest(tmp_path) == (None, [])
    assert verify.latest(tmp_path / "nowhere") == (None, [])


def test_commit_lists_every_file(tmp_path: Path) -> None:
    folder = save(tmp_path, 4)
    listing = json.loads((folder / "COMMIT.json").read_text())
    assert set(listing["files"]) == set(names(folder)) - {"COMMIT.json"}
    assert (listing["step"], listing["world_size"]) == (4, 1)


def test_a_copied_checkpoint_verifies(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", 1)
    assert verify.fault(shutil.copytree(folder, tmp_path / "b" / folder.name)) is None
