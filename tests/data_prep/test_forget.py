"""Taking samples out of any folder of shards, and keeping them out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset

from data_prep import forget as module
from data_prep.blocklist import Blocklist
from data_prep.download.ledger import Ledger
from data_prep.download.run import TOMBSTONES, download
from data_prep.forget import Forgotten, forget
from data_prep.merge import merge
from data_prep.shards import ShardFolder, Tally
from data_prep.transform import transform
from data_prep.verify import verify
from stack.data.index import Manifest
from stack.util.errors import UserError
from tests.data_prep.picture_server import PictureServer, rows_file, running
from tests.data_prep.test_download import LIMITS, SETTINGS, samples, shards


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with running(PictureServer()) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, server: PictureServer) -> Path:
    """20 samples in three shards, made by download, and one row that failed."""
    urls = [f"{server.url}/jpg/{n}" for n in range(20)] + [f"{server.url}/broken/1"]
    download(rows_file(tmp_path / "rows.parquet", urls), tmp_path / "out", SETTINGS)
    return tmp_path / "out"


def ids(folder: Path) -> list[int]:
    tars = [str(folder / entry.name) for entry in Manifest.read(folder).shards]
    found = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
    return [json.loads(sample["json"])["id"] for sample in found]


TAKEN: list[Callable[[PictureServer], Blocklist]] = [
    lambda server: Blocklist(ids=frozenset({1002, 1003, 1010})),
    lambda server: Blocklist(urls=frozenset(f"{server.url}/jpg/{n}" for n in (2, 3, 10))),
    lambda server: Blocklist(phashes=frozenset(f"{n:016x}" for n in (2, 3, 10))),
]


@pytest.mark.parametrize("taken", TAKEN)
def test_samples_leave_a_downloaded_folder_and_do_not_come_back(tmp_path, server, folder, taken):
    untouched = (folder / "000002.tar").read_bytes()
    assert forget(folder, taken(server)) == Forgotten(samples=3, shards=2)
    assert sorted(ids(folder)) == [n for n in range(1000, 1020) if n not in (1002, 1003, 1010)]
    manifest = Manifest.read(folder)
    assert [e.name for e in manifest.shards] == ["000000-r1.tar", "000001-r1.tar", "000002.tar"]
    assert manifest.counts == {"failed": 1, "forgotten": 3}
    assert manifest.replaced == ("000000.tar", "000001.tar")
    assert manifest.fields == {"jpg": 17, "json": 17, "txt": 17}
    assert (folder / "000002.tar").read_bytes() == untouched
    assert not (folder / "000000.tar").exists()
    assert verify(folder) == manifest
    # Not by the next pass, and not after everything is thrown away.
    download(tmp_path / "rows.parquet", folder, SETTINGS)
    assert len(ids(folder)) == 17
    again = download(tmp_path / "rows.parquet", folder, SETTINGS, overwrite=True)
    assert (again.samples, again.counts["forgotten"]) == (17, 3)
    with Ledger(folder) as ledger:
        assert [r.url for r in ledger.records() if r.state == "forgotten"] == [None] * 3


def test_a_second_request_and_a_repeated_one(folder):
    forget(folder, Blocklist(ids=frozenset({1001})))
    assert forget(folder, Blocklist(ids=frozenset({1001}))) == Forgotten()
    assert forget(folder, Blocklist(ids=frozenset({1002}))) == Forgotten(1, 1)
    manifest = Manifest.read(folder)
    assert manifest.shards[0].name == "000000-r2.tar"
    assert manifest.replaced == ("000000.tar", "000000-r1.tar")
    assert (folder / TOMBSTONES).read_text() == "id:1001\nid:1002\n"
    assert len(list(folder.glob("*.tar"))) == 3


def test_a_row_that_has_not_come_yet_never_will(tmp_path, server, folder):
    forget(folder, Blocklist(ids=frozenset({1020})))
    server.asked.clear()
    download(tmp_path / "rows.parquet", folder, SETTINGS)
    assert not server.asked
    assert Manifest.read(folder).counts == {"forgotten": 1}


def test_a_shard_that_loses_everything_is_gone(folder):
    forget(folder, Blocklist(ids=frozenset(range(1000, 1008))))
    assert [e.name for e in Manifest.read(folder).shards] == ["000001.tar", "000002.tar"]
    forget(folder, Blocklist(ids=frozenset(range(1000, 1020))))
    assert Manifest.read(folder).samples == 0
    assert not list(folder.glob("*.tar"))


def test_a_folder_of_another_verb(tmp_path, folder):
    out = tmp_path / "converted"
    transform("test", folder, ShardFolder(out, {"verb": "test"}), lambda found, tally: found)
    assert forget(out, Blocklist(ids=frozenset({1002, 1010}))) == Forgotten(2, 2)
    assert sorted(ids(out)) == [n for n in range(1000, 1020) if n not in (1002, 1010)]
    manifest = verify(out)
    assert manifest.fields == {"jpg": 18, "json": 18, "txt": 18}
    assert manifest.counts == {"failed": 1, "forgotten": 2}
    assert manifest.origin == {"verb": "test"}


def test_samples_that_cannot_be_told_apart_are_refused(tmp_path):
    out = ShardFolder(tmp_path / "bare", {})
    out.write("000000.tar", [("a", {"txt": b"x"})], Tally())
    out.finish()
    with pytest.raises(UserError, match="bare: json: samples without it"):
        forget(tmp_path / "bare", Blocklist(ids=frozenset({1})))


def test_parts_under_one_manifest(tmp_path, server):
    urls = [f"{server.url}/jpg/{n}" for n in range(20)]
    rows = rows_file(tmp_path / "rows.parquet", urls)
    for k in range(2):
        out = tmp_path / f"all/part-0000{k}-of-00002"
        download(rows, out, SETTINGS, part=(k, 2))
    merge(tmp_path / "all")
    assert forget(tmp_path / "all", Blocklist(ids=frozenset({1001, 1015}))) == Forgotten(2, 2)
    manifest = verify(tmp_path / "all")
    assert manifest.samples == 18
    assert manifest.replaced == (
        "part-00000-of-00002/000000.tar",
        "part-00001-of-00002/000000.tar",
    )
    assert 1001 not in ids(tmp_path / "all")


def test_a_name_is_not_used_again_for_another_shard(tmp_path, server):
    urls = [f"{server.url}/jpg/{n}" for n in range(16)] + [f"{server.url}/flaky/1"]
    rows = rows_file(tmp_path / "rows.parquet", urls)
    once = replace(SETTINGS, limits=replace(LIMITS, attempts=1))
    folder = tmp_path / "out"
    download(rows, folder, once)
    forget(folder, Blocklist(ids=frozenset(range(1008, 1016))))
    assert [entry.name for entry in Manifest.read(folder).shards] == ["000000.tar"]
    download(rows, folder, once)
    assert [entry.name for entry in Manifest.read(folder).shards] == ["000000.tar", "000002.tar"]
    forget(folder, Blocklist(ids=frozenset({5})))
    assert verify(folder).samples == 9


def test_latents_of_merged_parts(tmp_path, server):
    urls = [f"{server.url}/jpg/{n}" for n in range(12)]
    rows = rows_file(tmp_path / "rows.parquet", urls)
    for k in range(2):
        download(rows, tmp_path / f"all/part-0000{k}-of-00002", SETTINGS, part=(k, 2))
    merge(tmp_path / "all")
    out = tmp_path / "converted"
    made = ShardFolder(out, {"verb": "test"})
    transform("test", tmp_path / "all", made, lambda found, tally: found)
    assert forget(out, Blocklist(ids=frozenset({1001, 1009}))) == Forgotten(2, 2)
    assert verify(out).samples == 10
    # A whole part.
    assert forget(tmp_path / "all", Blocklist(ids=frozenset(range(1000, 1006)))).samples == 6
    assert verify(tmp_path / "all").samples == 6


class KilledError(Exception):
    """Stands for the end of the process."""


STEPS = ["_bury", "_rebuild", "write_shard", "write_manifest", "_remove", "manifest_of"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["download", "other"])
def test_a_kill_at_any_step_leaves_what_the_same_command_finishes(
    tmp_path, folder, step, when, kind, monkeypatch
):
    if kind == "other":
        out = tmp_path / "other"
        transform("test", folder, ShardFolder(out, {"verb": "test"}), lambda found, tally: found)
        folder = out
    taken = Blocklist(ids=frozenset({1001, 1009}))
    real = getattr(module, step)

    def killed(*args: object, **options: object) -> object:
        if when == "after":
            real(*args, **options)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(module, step, killed)
        try:
            forget(folder, taken)
        except KilledError:
            assert Manifest.read(folder).samples in (18, 20)
    forget(folder, taken)
    assert sorted(ids(folder)) == [n for n in range(1000, 1020) if n not in (1001, 1009)]
    assert verify(folder).samples == 18
    assert not (folder / "000000.tar").exists()


def test_the_command_line(folder, tmp_path, run):
    (tmp_path / "ids.txt").write_text("1001\n1002 # asked on Monday\n")
    status, out, _ = run("forget", folder, "--ids", tmp_path / "ids.txt")
    assert (status, out) == (0, f"{folder}: 2 samples forgotten; 1 shards rebuilt\n")
    (tmp_path / "bad.txt").write_text("not a number\n")
    status, _, error = run("forget", folder, "--ids", tmp_path / "bad.txt")
    assert status == 2
    assert "bad.txt:1: not a number: expected a decimal id" in error
    status, _, error = run("forget", tmp_path / "none", "--ids", tmp_path / "ids.txt")
    assert status == 2
    assert "none: no such folder" in error


def test_the_same_bytes_come_out_of_settings_that_do_not_matter(tmp_path, server):
    rows = rows_file(tmp_path / "rows.parquet", [f"{server.url}/jpg/{n}" for n in range(9)])
    slow = replace(SETTINGS, threads=1, limits=replace(LIMITS, per_host=1))
    for name, settings in (("a", SETTINGS), ("b", slow)):
        download(rows, tmp_path / name, settings)
        forget(tmp_path / name, Blocklist(ids=frozenset({1004})))
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    assert len(samples(tmp_path / "a")) == 8
