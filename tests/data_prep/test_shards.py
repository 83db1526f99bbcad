"""Folders of shards: whole or continued, never mixed, and made of nothing but their input."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.shards import JOURNAL, Sample, ShardFolder, Tally
from data_prep.tar import tar_header
from data_prep.transform import transform
from stack.data.index import MANIFEST, Manifest, index_shard
from stack.util.errors import UserError


def picture(kind: str, number: int, side: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (number, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def parquet(path: Path, images: list[bytes | None], **columns: list) -> Path:
    text = [f"caption {n}" for n in range(len(images))]
    pq.write_table(pa.table({"image": images, "text": text, **columns}), path)
    return path


@pytest.fixture
def source(tmp_path: Path, run) -> Path:
    """25 samples in shards of ten."""
    rows = parquet(tmp_path / "rows.parquet", [picture("png", n) for n in range(25)])
    out = tmp_path / "source"
    assert run("shards", rows, out, "--samples-per-shard", 10)[0] == 0
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "size"),
    [("a.png", 0), ("x" * 99, 123456789), ("x" * 100, 5), ("x" * 150, 5), ("é.txt", 77)],
)
def test_tar_headers_are_those_of_tarfile(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    header = tar_header(name.encode(), size)
    if len(name) < 100:
        assert header == info.tobuf(tarfile.GNU_FORMAT)
    file = io.BytesIO(header + bytes(min(size, 1024)) + bytes(1024))
    with tarfile.open(fileobj=file) as tar:
        member = tar.next()
    assert (member.name, member.size, member.mtime) == (name, size, 0)


def test_index_and_manifest_tell_what_is_in_the_tars(source):
    manifest = Manifest.read(source)
    assert [entry.samples for entry in manifest.shards] == [10, 10, 5]
    assert (manifest.samples, manifest.resolution) == (25, 4)
    for entry in manifest.shards:
        data = (source / entry.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.bytes, entry.sha256)
        index = np.load(source / entry.index_name)
        found = index_shard(source / entry.name)
        assert index.dtype == found.dtype
        assert (index == found).all()
        with tarfile.open(source / entry.name) as tar:
            for member in tar:
                key, field = member.name.split(".", 1)
                row = index[index["key"].astype(str).tolist().index(key)][field]
                assert (row["offset"], row["size"]) == (member.offset_data, member.size)
    assert sorted(contents(source)) == sorted(
        [MANIFEST, *(e.name for e in manifest.shards), *(e.index_name for e in manifest.shards)]
    )


def test_every_kind_of_image_and_every_column(tmp_path, run):
    images = [picture("png", 1), b"garbage", picture("jpeg", 2), picture("webp", 3), None]
    ids = ["a/1", "b", "c.3", "d", "e"]
    rows = parquet(tmp_path / "rows.parquet", images, id=ids, score=[1.5, 2, 3, 4, 5])
    status, out, _ = run("shards", rows, tmp_path / "out")
    assert status == 0
    assert "3 samples in 1 shards (jpg json png txt webp); 2 dropped" in out
    with tarfile.open(tmp_path / "out/000000.tar") as tar:
        names = set(tar.getnames())
        about = json.load(tar.extractfile("a_1.json"))
    assert {"a_1.png", "c_3.jpg", "d.webp", "d.txt"} < names
    assert about == {"id": "a/1", "score": 1.5}
    assert Manifest.read(tmp_path / "out").counts == {"dropped": 2}


class KilledError(Exception):
    """Stands for the end of the process."""


def test_a_killed_run_continues_and_ends_in_the_same_bytes(source, tmp_path):
    def convert(samples: Iterator[Sample], tally: Tally) -> Iterator[Sample]:
        for key, fields in samples:
            tally.counts["met"] += 1
            yield key, {**fields, "cls": b"1"}

    def killed(samples: Iterator[Sample], tally: Tally) -> Iterator[Sample]:
        for count, sample in enumerate(convert(samples, tally)):
            if started == 2 and count == 4:
                raise KilledError
            yield sample

    started = 0

    def counted(samples: Iterator[Sample], tally: Tally) -> Iterator[Sample]:
        nonlocal started
        started += 1
        return (killed if started == 2 else convert)(samples, tally)

    origin = {"verb": "test"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    transform("test", source, ShardFolder(whole, origin), convert)
    with pytest.raises(KilledError):
        transform("test", source, ShardFolder(broken, origin), counted)
    assert not (broken / MANIFEST).exists()
    with pytest.raises(UserError, match="unfinished"):
        Manifest.read(broken)
    with open(broken / JOURNAL, "a") as journal:
        journal.write('{"entry": {"name": "000001.')
    first = (broken / "000000.tar").stat().st_mtime_ns
    transform("test", source, ShardFolder(broken, origin), counted)
    assert started == 4
    assert (broken / "000000.tar").stat().st_mtime_ns == first
    assert contents(broken) == contents(whole)
    assert Manifest.read(whole).counts == {"met": 25}


def test_a_finished_folder_is_left_as_it_is(source, tmp_path, run):
    before = {path.name: path.stat().st_mtime_ns for path in source.iterdir()}
    again = run("shards", tmp_path / "rows.parquet", source, "--samples-per-shard", 10)
    assert again[0] == 0
    assert {path.name: path.stat().st_mtime_ns for path in source.iterdir()} == before


def test_what_a_folder_holds_is_never_written_over_unasked(source, tmp_path, run):
    rows, before = tmp_path / "rows.parquet", contents(source)
    status, _, error = run("shards", rows, source, "--samples-per-shard", 9)
    assert status == 2
    assert "source: holds shards made with another samples_per_shard; name a new" in error
    assert contents(source) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("keep")
    status, _, error = run("shards", rows, tmp_path / "full")
    assert status == 2
    assert "full: holds other files" in error
    for out in (source, tmp_path / "full"):
        assert run("shards", rows, out, "--overwrite")[0] == 0
        assert len(Manifest.read(out).shards) == 1
        assert len(list(out.glob("*.tar"))) == 1
    assert (tmp_path / "full/mine.txt").read_text() == "keep"


def test_overwrite_makes_a_damaged_folder_anew(source, tmp_path, run):
    words = ("shards", tmp_path / "rows.parquet", source, "--samples-per-shard", 10)
    whole = contents(source)
    (source / "000001.tar").write_bytes(bytes(len(whole["000001.tar"])))
    (source / "000002.tar").unlink()
    status, _, error = run(*words)
    assert status == 2
    assert "000002.tar: missing" in error
    assert run(*words, "--overwrite")[0] == 0
    assert contents(source) == whole


def test_two_samples_with_one_key_are_refused(tmp_path, run):
    rows = parquet(tmp_path / "rows.parquet", [picture("png", n) for n in (1, 2)], id=["a", "a"])
    status, _, error = run("shards", rows, tmp_path / "out")
    assert status == 2
    assert "a: two samples have this key" in error


def test_a_damaged_sample_of_the_input_is_left_out_and_counted(source, tmp_path):
    start = int(np.load(source / "000001.index.npy")["txt"]["offset"][3])
    data = bytearray((source / "000001.tar").read_bytes())
    data[start] ^= 1
    (source / "000001.tar").write_bytes(data)
    folder = ShardFolder(tmp_path / "out", {})
    manifest = transform("test", source, folder, lambda samples, tally: samples)
    assert (manifest.samples, manifest.counts) == (24, {"dropped": 1})
