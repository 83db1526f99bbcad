"""`data_prep verify` finds every kind of damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep.shards import ShardFolder, Tally


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = ShardFolder(tmp_path / "shards", {})
    for name in ("000000.tar", "000001.tar"):
        rows = [(f"{n}", {"txt": b"a caption", "json": b"{}"}) for n in range(5)]
        out.write(name, rows, Tally())
    out.finish()
    return tmp_path / "shards"


def flip_sample(folder: Path) -> None:
    tar = folder / "000001.tar"
    data = bytearray(tar.read_bytes())
    data[np.load(folder / "000001.index.npy")["txt"]["offset"][2]] ^= 1
    tar.write_bytes(data)


def flip_padding(folder: Path) -> None:
    tar = folder / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")


def edit_index(folder: Path) -> None:
    path = folder / "000001.index.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def cut(folder: Path) -> None:
    tar = folder / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])


FAULTS = [
    (flip_sample, 2, "000001.tar: 2: crc32 or place differs from its index"),
    (flip_padding, 1, "000001.tar: sha256: not the tar that the manifest lists"),
    (edit_index, 1, "000001.index.npy: index_sha256"),
    (cut, 1, "000001.tar: bytes:"),
    (lambda folder: (folder / "000001.tar").unlink(), 1, "000001.tar: missing"),
    (
        lambda folder: shutil.copy(folder / "000001.tar", folder / "000002.tar"),
        1,
        "000002.tar: not listed in the manifest",
    ),
]


def test_a_whole_folder_passes(folder, run):
    status, out, _ = run("verify", folder)
    assert status == 0
    assert "10 samples in 2 shards (json txt); every checksum matches" in out


@pytest.mark.parametrize(("damage", "faults", "message"), FAULTS)
def test_damage_is_found_and_named(folder, run, damage, faults, message):
    damage(folder)
    status, _, error = run("verify", folder)
    assert status == 2
    assert message in error
    assert f"error: {folder}: {faults} faults" in error
