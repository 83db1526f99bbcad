"""Folders behind URLs: the same samples, through a server that fails in every way."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import fsspec
import pytest
import torch

from stack.data import storage
from stack.data.batch import BatchLoader
from stack.data.cache import ShardCache, evicted
from stack.data.stream import ShardStream
from stack.util import retry
from stack.util.errors import UserError
from tests.data.server import ShardServer, serving

OPTIONS = {"global_batch": 16, "lanes": 8, "seed": 3, "window": 6}
FIELDS = ("image", "latent", "tokens", "text", "key")
PIECE = 4096
TAR, INDEX = "000000.tar", "000000.index.npy"


@pytest.fixture(autouse=True)
def _in_small_pieces_without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_PIECE", PIECE)
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.0)


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[ShardServer]:
    """A server of a copy of the folder, as /x."""
    shutil.copytree(folder, tmp_path / "served" / "x")
    with serving(tmp_path / "served") as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 10**9)


def stream(url: str | list[str], cache: ShardCache | None, **changed) -> ShardStream:
    return ShardStream(url, **{**OPTIONS, "retries": 2, **changed}, cache=cache)


def batches(source: ShardStream, count: int, **options) -> list[dict]:
    return list(islice(BatchLoader(source, FIELDS, **options), count))


def same(some: list[dict], others: list[dict]) -> bool:
    def plain(batch: dict) -> dict:
        return {k: v.tolist() if torch.is_tensor(v) else v for k, v in batch.items()}

    return list(map(plain, some)) == list(map(plain, others))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_those_of_the_local_folder(folder, server, cache, workers):
    loader = BatchLoader(stream(f"{server.url}/x", cache), FIELDS, workers=workers)
    assert same(list(islice(loader, 8)), batches(ShardStream(folder, **OPTIONS), 8))
    # Two files a shard; whoever came first fetched them.
    assert loader.counts()["cache_misses"] == 8
    for path in folder.glob("0*"):
        assert server.sent[path.name] == path.stat().st_size


@pytest.mark.parametrize("name", ["part-*", "part-?", "part-{a,b}", "p*/"])
def test_patterns_find_remote_folders_as_they_find_local_ones(make_folder, cache, name):
    local = [make_folder("part-a", [30]), make_folder("part-b", [34], first=30)]
    for path in local:
        fsspec.filesystem("memory").put(str(path), f"/patterns/{path.name}", recursive=True)
    found = stream(f"memory://patterns/{name}", cache)
    assert [folder.url[-6:] for folder in found.manifests] == ["part-a", "part-b"]
    assert same(batches(found, 4), batches(ShardStream(local, **OPTIONS), 4))
    with pytest.raises(UserError, match=r"^memory://patterns/other-\*: no folder matches"):
        stream("memory://patterns/other-*", cache)


def read_all(server: ShardServer, cache: ShardCache, **changed) -> list[dict]:
    return batches(stream(f"{server.url}/x", cache, **changed), 4)


def cut(server: ShardServer) -> int:
    server.cuts[TAR] = (2, 1000)
    return 1000


def cut_unsaid(server: ShardServer) -> int:
    server.cuts[TAR], server.sized = (2, 1000), {"HEAD"}
    return 0


def fail_twice(server: ShardServer) -> int:
    # What asks for a file's size asks in two ways.
    server.failures.update({"manifest.json": 2, INDEX: 4, TAR: 4})
    return 0


def ignore_ranges(server: ShardServer) -> int:
    server.ranges = 0
    return 0


def forget_ranges(server: ShardServer) -> int:
    server.ranges = 2
    return 2 * PIECE


def garble_once(server: ShardServer) -> int:
    server.wrong[TAR] = 1
    return (server.root / "x" / TAR).stat().st_size


PASSING = [cut, cut_unsaid, fail_twice, ignore_ranges, forget_ranges, garble_once]


@pytest.mark.parametrize("failing", PASSING, ids=lambda failing: failing.__name__)
def test_what_passes_costs_no_more_than_was_lost(folder, server, cache, failing):
    lost = failing(server)
    assert same(read_all(server, cache), batches(ShardStream(folder, **OPTIONS), 4))
    assert server.failures.total() == 0
    assert server.sent[TAR] == (folder / TAR).stat().st_size + lost


def test_a_server_may_tell_no_lengths(folder, server, cache):
    server.sized = set()
    assert same(read_all(server, cache), batches(ShardStream(folder, **OPTIONS), 4))


def test_a_cut_transfer_goes_on_in_the_next_run(folder, server, cache):
    server.cuts[TAR] = (5, 0)
    with pytest.raises(UserError, match="failed 1 times"):
        read_all(server, cache, retries=0)
    assert server.sent[TAR] == 5 * PIECE
    read_all(server, ShardCache(cache.folder, cache.limit))
    assert server.sent[TAR] == (folder / TAR).stat().st_size


def test_a_second_run_fetches_nothing_and_a_new_etag_everything(server, cache):
    read_all(server, cache)
    sent = dict(server.sent)
    read_all(server, cache)
    assert {name: n for name, n in server.sent.items() if name != "manifest.json"} == {
        name: n for name, n in sent.items() if name != "manifest.json"
    }
    server.etag = "new"
    read_all(server, cache)
    assert server.sent[TAR] == 2 * sent[TAR]


def test_other_shards_under_the_same_url_and_etag_are_not_taken_for_the_cached_ones(
    make_folder, server, cache
):
    server.etag = "constant"
    old = read_all(server, cache)
    other = make_folder("other", (20, 7, 31, 17), first=100)
    shutil.copytree(other, server.root / "x", dirs_exist_ok=True)
    new = read_all(server, cache)
    assert same(new, batches(ShardStream(other, **OPTIONS), 4))
    assert not same(new, old)


def test_a_cache_smaller_than_the_data_is_enough(folder, server, tmp_path):
    cache = ShardCache(tmp_path / "cache", 260_000)
    source = stream(f"{server.url}/x", cache)
    local = ShardStream(folder, **OPTIONS)
    for _ in range(8):
        assert same(batches(source, 1), batches(local, 1))
        used = sum(path.stat().st_size for path in cache.folder.iterdir())
        assert used <= cache.limit < sum(path.stat().st_size for path in folder.glob("*.tar"))
        # Files that are gone but open would still take disk space.
        assert not any(evicted(shard._file) for shard in source._open.values())


def test_shards_in_use_count_as_used(server, cache):
    source = stream(f"{server.url}/x", cache, world_size=8)
    batches(source, 4)
    for step in range(4, 8):
        for path in cache.folder.iterdir():
            os.utime(path, (0, 0))
        batches(source, 1)
        used = {f"{shard:06d}.tar" for shard in source.lanes.locate(step)[0].tolist()}
        touched = {path.name[33:] for path in cache.folder.iterdir() if path.stat().st_mtime}
        assert {name for name in touched if name.endswith(".tar")} == used


def test_a_file_that_is_missing_in_memory_is_told(folder, cache):
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/missing", recursive=True)
    memory.rm(f"/missing/{TAR}")
    with pytest.raises(UserError, match=f"^memory://missing/{TAR}: failed 3 times: no such file$"):
        batches(stream("memory://missing", cache), 4)


def unlink(name: str) -> Callable[[ShardServer], object]:
    return lambda server: (server.root / "x" / name).unlink()


def fail(name: str) -> Callable[[ShardServer], object]:
    return lambda server: server.failures.update({name: 999})


def truncate(server: ShardServer) -> None:
    path = server.root / "x" / TAR
    path.write_bytes(path.read_bytes()[:-10240])


BROKEN = [
    (unlink("manifest.json"), "manifest.json: missing; the folder is empty, unfinished or not of"),
    (unlink(TAR), f"{TAR}: failed 3 times: 404, message='Not Found'"),
    (unlink(INDEX), f"{INDEX}: failed 3 times: 404"),
    (truncate, f"{TAR}: bytes: .* there, .* in manifest.json; the tar was cut short or replaced"),
    (
        lambda server: server.wrong.update({TAR: 999}),
        f"{TAR}: failed 3 times: sha256 is not the one",
    ),
    (lambda server: server.wrong.update({INDEX: 999}), f"{INDEX}: failed 3 times: sha256 is not"),
    (fail("manifest.json"), "manifest.json: failed 3 times: 500, message='Internal Server Error'"),
    (fail(TAR), f"{TAR}: failed 3 times: 500, message='Internal Server Error'"),
    (lambda server: server.server_close(), "manifest.json: failed 3 times: "),
]


@pytest.mark.parametrize(("break_", "message"), BROKEN)
def test_what_stays_broken_is_one_line_without_secrets(server, cache, break_, message, caplog):
    break_(server)
    url = f"http://user:password@{server.place}/x?token=SECRET"
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(UserError, match=f"^{server.url}/x/{message}") as caught,
    ):
        batches(stream(url, cache), 4)
    for told in (caplog.text, str(caught.value)):
        assert "password" not in told
        assert "SECRET" not in told
    assert "\n" not in str(caught.value)
    if "missing" in message:
        assert len(server.seen) == 1


def test_secrets_reach_the_server_and_nobody_else(server, cache, caplog):
    url = f"http://user:password@{server.place}/x?token=SECRET"
    server.failures[TAR] = 2
    with caplog.at_level(logging.INFO):
        source = stream(url, cache)
        batches(source, 1)
    for _, path, authorization in server.seen:
        assert path.endswith("?token=SECRET")
        assert authorization == "Basic dXNlcjpwYXNzd29yZA=="
    (folder,) = source.manifests
    assert str(folder) == f"{server.url}/x"
    for told in (str(folder), repr(folder), folder.file(TAR), caplog.text):
        assert "password" not in told
        assert "SECRET" not in told
    assert "trying again" in caplog.text
    names = " ".join(path.name for path in cache.folder.iterdir())
    assert "SECRET" not in names
