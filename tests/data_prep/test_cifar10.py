"""CIFAR-10 from its python batches and from parquet: the same samples, nothing run."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.cifar10 import BATCHES, CLASSES, caption, cifar10
from stack.data.index import Manifest
from stack.data.shard import Shard
from stack.data.storage import LocalFolder
from stack.util.errors import UserError

EACH = 6
"""Pictures of a batch here; published ones have 10,000."""


def raw(data: bytes) -> bytes:
    return b"T" + struct.pack("<I", len(data)) + data


def number(value: float) -> bytes:
    return b"G" + struct.pack(">d", value) if isinstance(value, float) else b"K" + bytes([value])


def python2_batch(pixels: np.ndarray, labels: Sequence[float], dtype: bytes = b"u1") -> bytes:
    """What Python 2's cPickle wrote: protocol 2, texts and the array's bytes alike as strings."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU" + bytes([len(dtype)]) + dtype + b"K\x00K\x01\x87R"
    kind += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"M" + struct.pack("<H", len(pixels)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    state = b"(K\x01" + shape + kind + b"\x89" + raw(pixels.tobytes()) + b"tb"
    numbers = b"](" + b"".join(map(number, labels)) + b"e"
    entries = raw(b"batch_label") + raw(b"training batch 1 of 5") + raw(b"labels") + numbers
    return b"\x80\x02}(" + entries + raw(b"data") + array + state + b"u."


@pytest.fixture
def pictures() -> tuple[np.ndarray, list[int]]:
    """36 pictures: five batches of training and one of testing."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (6 * EACH, 3, 32, 32), np.uint8)
    return pixels, [n % 10 for n in range(6 * EACH)]


@pytest.fixture
def batches(pictures, tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels, labels = pictures
    for n, name in enumerate([*BATCHES["train"], *BATCHES["test"]]):
        part = slice(n * EACH, (n + 1) * EACH)
        (folder / name).write_bytes(python2_batch(pixels[part], labels[part]))
    return folder


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    found = {}
    for entry in Manifest.read(folder).shards:
        shard = Shard(LocalFolder(folder), entry)
        for row in range(entry.samples):
            members = shard.read(row, shard.fields)
            found[shard.key(row)] = {name: bytes(data) for name, data in members.items()}
        shard.close()
    return found


def decoded(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image).transpose(2, 0, 1)


def test_batches_become_lossless_pictures_with_classes(batches, pictures, tmp_path):
    out = tmp_path / "out"
    manifest = cifar10(batches, out, samples_per_shard=8)
    assert (manifest.samples, len(manifest.shards), manifest.resolution) == (30, 4, 32)
    assert manifest.fields == dict.fromkeys(("png", "txt", "json", "cls"), 30)
    found = samples(out)
    assert sorted(found) == [f"{n:05d}" for n in range(30)]
    for key, sample in found.items():
        pixels, label = pictures[0][int(key)], pictures[1][int(key)]
        assert np.array_equal(decoded(sample["png"]), pixels)
        assert sample["cls"] == str(label).encode()
        assert sample["txt"].decode() == caption(label)
        assert json.loads(sample["json"]) == {"class": CLASSES[label]}


def test_split_and_order(batches, pictures, tmp_path):
    test = samples(tmp_path / "t") if cifar10(batches, tmp_path / "t", split="test") else {}
    assert len(test) == EACH
    assert np.array_equal(decoded(test["00003"]["png"]), pictures[0][5 * EACH + 3])
    orders = []
    for seed in (0, 0, 1):
        out = tmp_path / f"order{len(orders)}"
        cifar10(batches, out, seed=seed)
        orders.append(list(samples(out)))
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])
    assert sorted(orders[0]) == sorted(orders[2])


def test_a_tar_is_as_the_folder(batches, tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches, "cifar-10-batches-py")
    one, other = (cifar10(s, tmp_path / s.name[-3:]) for s in (batches, archive))
    assert one.fingerprint == other.fingerprint


def test_a_damaged_tar_is_refused(batches, tmp_path):
    """Pixels hardly compress: a flipped bit in them is told by gzip's checksum alone."""
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches, "cifar-10-batches-py")
    whole = archive.read_bytes()
    for share in (0.02, 0.3, 0.6):
        data = bytearray(whole)
        data[int(share * len(whole))] ^= 1
        archive.write_bytes(data)
        with pytest.raises(UserError, match=r"python\.tar\.gz: neither a folder or tar of"):
            cifar10(archive, tmp_path / "out")
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"python\.tar\.gz: neither a folder or tar of"):
        cifar10(archive, tmp_path / "out")


def test_captions():
    assert caption(0) == "a photo of an airplane"
    assert caption(3) == "a photo of a cat"


def parquet(path: Path, images: list[bytes], labels: list[int], **columns: list) -> Path:
    pq.write_table(pa.table({"image": images, "label": labels, **columns}), path)
    return path


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, kind)
    return buffer.getvalue()


def test_bytes_may_be_of_the_large_kind(pictures, tmp_path):
    images = pa.array([encoded(pictures[0][0], "png")], pa.large_binary())
    pq.write_table(pa.table({"image": images, "label": [1]}), tmp_path / "a.parquet")
    assert cifar10(tmp_path / "a.parquet", tmp_path / "out").samples == 1


@pytest.mark.parametrize(("kind", "field"), [("jpeg", "jpg"), ("png", "png")])
def test_a_parquets_bytes_are_kept(kind, field, pictures, tmp_path):
    images = [encoded(pixels, kind) for pixels in pictures[0][:12]]
    source = parquet(tmp_path / "c.parquet", images, pictures[1][:12], id=list(range(12)))
    manifest = cifar10(source, tmp_path / "out")
    assert manifest.fields == dict.fromkeys((field, "txt", "json", "cls"), 12)
    for key, sample in samples(tmp_path / "out").items():
        label = pictures[1][int(key)]
        assert sample[field] == images[int(key)]
        assert (sample["cls"], sample["txt"].decode()) == (str(label).encode(), caption(label))
        assert json.loads(sample["json"]) == {"class": CLASSES[label], "id": int(key)}


def test_a_parquets_captions_are_kept_and_damage_counted(pictures, tmp_path):
    images = [encoded(pictures[0][0], "png"), b"no picture"]
    source = parquet(tmp_path / "c.parquet", images, [1, 2], text=["a car", None])
    manifest = cifar10(source, tmp_path / "out")
    assert (manifest.samples, manifest.counts) == (1, {"dropped": 1})
    assert samples(tmp_path / "out")["00000"]["txt"] == b"a car"


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_parquet_has_no_parts_to_ask_for(split, pictures, tmp_path, run):
    source = parquet(tmp_path / "c.parquet", [encoded(pictures[0][0], "png")], [1])
    status, _, error = run("cifar10", source, tmp_path / "out", "--split", split)
    assert status == 2
    assert f"c.parquet: --split {split}: a parquet file is taken whole; leave --split" in error
    assert not (tmp_path / "out").exists()
    assert run("cifar10", source, tmp_path / "out")[0] == 0


def test_the_batches_part_is_train_unless_told(batches, tmp_path, run):
    for words in ([], ["--split", "train"], ["--split", "test"]):
        assert run("cifar10", batches, tmp_path / f"out{len(words)}{words[-1:]}", *words)[0] == 0
    folders = sorted(tmp_path.glob("out*"))
    assert [Manifest.read(folder).samples for folder in folders] == [5 * EACH, EACH, 5 * EACH]
    assert Manifest.read(folders[0]).origin == Manifest.read(folders[2]).origin


def test_a_finished_folder_is_left_as_it_is(batches, tmp_path):
    first = cifar10(batches, tmp_path / "out")
    assert cifar10(batches, tmp_path / "out") == first
    with pytest.raises(UserError, match="another seed"):
        cifar10(batches, tmp_path / "out", seed=1)
    assert cifar10(batches, tmp_path / "out", seed=1, overwrite=True).samples == first.samples


def test_a_batch_that_names_a_command_is_refused(batches, tmp_path):
    sentinel = tmp_path / "ran"
    evil = f"cos\nsystem\n(S'touch {sentinel}'\ntR.".encode()
    (batches / "data_batch_3").write_bytes(evil)
    with pytest.raises(UserError, match=r"data_batch_3: 'os\.system': .* refused"):
        cifar10(batches, tmp_path / "out")
    assert not sentinel.exists()
    assert not (tmp_path / "out").exists()


def test_odd_batches_are_refused(batches, pictures, tmp_path):
    pixels = pictures[0][:EACH]
    for data, message in (
        (b"junk", "data_batch_1: not a readable pickle"),
        (b"\x80\x02}.", "not laid out as CIFAR-10 is .KeyError"),
        (python2_batch(pixels, [1, 2]), "not laid out as CIFAR-10 is .ValueError"),
        (python2_batch(pixels, [0] * EACH, b"O8"), "data is no array of bytes"),
        (python2_batch(pixels, [10] * EACH), "label: 10 is not one of 0 to 9"),
        (python2_batch(pixels, [3.0] * EACH), r"label: 3\.0 is not one of 0 to 9"),
    ):
        (batches / "data_batch_1").write_bytes(data)
        with pytest.raises(UserError, match=message):
            cifar10(batches, tmp_path / "out")


def test_other_sources_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("nothing")
    with tarfile.open(tmp_path / "other.tar", "w"):
        pass
    plain = parquet(tmp_path / "a.parquet", [b"x"], [11])
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"image": ["x"], "label": [1]}), tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_text("nothing")
    parquet(tmp_path / "f.parquet", [b"x"], [1], text=[3])
    parquet(tmp_path / "g.parquet", [], [])
    for name, message in (
        ("missing", "missing: no such file or folder"),
        ("empty", "empty: data_batch_1: no such file"),
        ("text", "text: neither a folder or tar of CIFAR-10's python batches nor a .parquet"),
        ("other.tar", "cifar-10-batches-py/data_batch_1: not in this tar"),
        (plain.name, "label: 11 is not one of 0 to 9"),
        ("b.parquet", "label: no such column"),
        ("c.parquet", "image: must be bytes of image files, not string"),
        ("d.parquet", "not a parquet file"),
        ("e.parquet", "no such file"),
        ("f.parquet", "text: must be strings, not int64"),
        ("g.parquet", "image: must be bytes of image files, not null"),
    ):
        with pytest.raises(UserError, match=message):
            cifar10(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()
