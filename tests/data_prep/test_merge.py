"""Parts under one manifest: as one folder to everything that reads shards."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.download.run import download
from data_prep.merge import merge
from data_prep.shards import ShardFolder, Tally
from data_prep.transform import transform
from data_prep.verify import verify
from stack.data.index import MANIFEST, Manifest, VaeInfo
from stack.data.stream import ShardStream
from stack.util.errors import UserError
from tests.data_prep.picture_server import PictureServer, rows_file, running
from tests.data_prep.test_download import SETTINGS, samples


def make(folder: Path, count: int, first: int = 0, **known: object) -> Manifest:
    out = ShardFolder(folder, {"verb": "test"})
    for shard in range(2):
        keys = range(first + shard * count, first + (shard + 1) * count)
        samples = [(f"{key:06d}", {"txt": b"%d" % key, "json": b"{}"}) for key in keys]
        out.write(f"{shard:06d}.tar", samples, Tally(counts=Counter(met=count)))
    return out.finish(**known)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    for number in range(3):
        make(tmp_path / f"all/part-0000{number}-of-00003", 5, first=10 * number)
    return tmp_path / "all"


def test_a_merged_folder_is_read_like_any_other(tmp_path, parts):
    manifest = merge(parts)
    assert (manifest.samples, len(manifest.shards)) == (30, 6)
    assert manifest.fields == {"json": 30, "txt": 30}
    assert manifest.counts == {"met": 30}
    assert verify(parts) == manifest
    stream = ShardStream([str(parts)], global_batch=10, lanes=5, seed=0)
    seen = [sample for _, sample in zip(range(30), stream, strict=False)]
    assert len(seen) == 30
    out = tmp_path / "converted"
    new = transform("test", parts, ShardFolder(out, {}), lambda samples, tally: samples)
    assert verify(out) == new
    assert (out / "part-00002-of-00003/000001.tar").is_file()


def test_merging_again_takes_up_what_has_changed(parts):
    first = merge(parts)
    assert merge(parts) == first
    shutil.rmtree(parts / "part-00001-of-00003")
    make(parts / "part-00001-of-00003", 4, first=10)
    assert merge(parts).samples == 28


Change = Callable[[Path], object]
MISTAKES: list[tuple[Change, str]] = [
    (lambda p: shutil.rmtree(p), "all: no folders part-K-of-N in it"),
    (lambda p: shutil.rmtree(p / "part-00001-of-00003"), "all: part 1 is missing"),
    (lambda p: (p / "part-00001-of-00003" / MANIFEST).unlink(), "manifest.json: missing"),
    (lambda p: (p / "part-00001-of-00003/000000.tar").unlink(), "000000.tar: missing"),
    (lambda p: make(p / "part-00001-of-00007", 2), "all: parts of 3 and 7; they divide"),
    (lambda p: shutil.copy(p / "part-00001-of-00003" / MANIFEST, p), "all: holds shards of its"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_parts_that_are_no_whole_are_told_in_one_line(parts, change, message, run):
    change(parts)
    status, _, error = run("merge", parts)
    assert status == 2
    assert message in error
    assert error.count("\n") == 1


def test_parts_of_two_autoencoders_are_not_one(tmp_path):
    for number in range(2):
        vae = VaeInfo(hash=f"{number}" * 64, scale=0.5)
        make(tmp_path / f"all/part-0000{number}-of-00002", 2, first=4 * number, vae=vae)
    with pytest.raises(UserError, match="part-00001-of-00002: vae: hash='1111"):
        merge(tmp_path / "all")


def test_parts_share_the_rows_among_them(tmp_path):
    with running(PictureServer()) as server:
        urls = [f"{server.url}/jpg/{number}" for number in range(40)]
        rows = rows_file(tmp_path / "rows.parquet", urls)
        download(rows, tmp_path / "whole", SETTINGS)
        parts = [tmp_path / f"all/part-0000{k}-of-00003" for k in range(3)]
        made = [download(rows, part, SETTINGS, part=(k, 3)) for k, part in enumerate(parts)]
    assert [part.samples for part in made] == [13, 13, 14]
    keys = [sample["__key__"] for part in parts for sample in samples(part)]
    assert keys == [sample["__key__"] for sample in samples(tmp_path / "whole")]
    assert merge(tmp_path / "all").samples == 40


def test_parts_of_several_formats_and_without_a_picture(tmp_path, caplog):
    with running(PictureServer()) as server:
        kinds = ["exact", "exact_png", "gone"]
        urls = [f"{server.url}/{kind}/{n}" for kind in kinds for n in range(2)]
        rows = rows_file(tmp_path / "rows.parquet", urls)
        parts = [tmp_path / f"all/part-0000{k}-of-00003" for k in range(3)]
        made = [download(rows, part, SETTINGS, part=(k, 3)) for k, part in enumerate(parts)]
    assert [part.samples for part in made] == [2, 2, 0]
    assert "none of 2 rows gave a picture (2 http_410)" in caplog.text
    manifest = merge(tmp_path / "all")
    assert manifest.fields == {"jpg": 2, "json": 4, "png": 2, "txt": 4}
    assert verify(tmp_path / "all") == manifest
    out = tmp_path / "converted"
    transform("test", parts[2], ShardFolder(out, {}), lambda found, tally: found)
    assert Manifest.read(out).samples == 0
