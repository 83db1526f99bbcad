"""ShardCache: each file once, whole or not at all, and never more than the limit."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import IO

import pytest

from stack.data import cache as cache_module
from stack.data.cache import ShardCache, evicted, touch
from stack.util.errors import UserError

FORK = multiprocessing.get_context("fork")
LIMIT = 1000


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", LIMIT)


def bytes_of(name: str, size: int) -> bytes:
    return (name.encode() * size)[:size]


def fetch_of(name: str, size: int) -> Callable[[IO[bytes]], None]:
    """Appends what a file of this name and size lacks."""
    return lambda part: part.write(bytes_of(name, size)[part.tell() :])


def get(cache: ShardCache, name: str, size: int = 300, version: str = "1") -> IO[bytes]:
    return cache.open(f"s3://bucket/{name}", version, size, fetch_of(name, size))


def never(part: IO[bytes]) -> None:
    raise AssertionError("fetched again")


def names(cache: ShardCache) -> list[str]:
    """What is in the folder, without digests and the lock."""
    return sorted(path.name[33:] for path in cache.folder.iterdir() if path.name != ".lock")


def age(cache: ShardCache, *oldest_first: str) -> None:
    for hours, name in enumerate(reversed(oldest_first), 1):
        (path,) = cache.folder.glob(f"*-{name}*")
        os.utime(path, (0, path.stat().st_atime - 3600 * hours))


def used(cache: ShardCache) -> int:
    total = 0
    for path in cache.folder.iterdir():
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_a_file_is_fetched_once(cache):
    for _ in range(3):
        with get(cache, "0.tar") as file:
            assert file.read() == bytes_of("0.tar", 300)
    assert (cache.misses, cache.hits) == (1, 2)
    assert names(cache) == ["0.tar"]
    other = ShardCache(cache.folder, LIMIT)
    other.open("s3://bucket/0.tar", "1", 300, never).close()
    assert (other.misses, other.hits) == (0, 1)


KEYS = [
    ("s3://bucket/0.tar", "1"),
    ("s3://bucket/0.tar", "2"),
    ("s3://other/0.tar", "1"),
    ("https://bucket/0.tar", "1"),
    ("s3://bucket/part/0.tar", "1"),
    ("s3://bucket/0.tar?versionId=7", "1"),
]


def test_only_the_same_url_and_version_are_the_same_file(cache):
    for number, (address, version) in enumerate(KEYS):
        cache.open(address, version, 20, fetch_of(str(number), 20)).close()
    assert names(cache) == ["0.tar"] * len(KEYS)
    for number, (address, version) in enumerate(KEYS):
        with cache.open(address, version, 20, never) as file:
            assert file.read() == bytes_of(str(number), 20)


def test_nothing_has_the_final_name_until_it_is_whole(cache):
    def fetch(part: IO[bytes]) -> None:
        part.write(b"0123456789")
        assert names(cache) == ["0.tar.20.part"]
        raise OSError("cut")

    def rest(part: IO[bytes]) -> None:
        assert part.tell() == 10
        part.write(b"abcdefghij")
        assert names(cache) == ["0.tar.20.part"]

    with pytest.raises(OSError, match="cut"):
        cache.open("s3://bucket/0.tar", "1", 20, fetch)
    assert names(cache) == ["0.tar.20.part"]
    with cache.open("s3://bucket/0.tar", "1", 20, rest) as file:
        assert file.read() == b"0123456789abcdefghij"
    assert names(cache) == ["0.tar"]


def test_a_part_of_a_killed_process_is_continued_where_it_ends(cache):
    half, ready = bytes_of("0.tar", 300)[:150], FORK.Event()

    def hang(part: IO[bytes]) -> None:
        part.write(half)
        ready.set()
        signal.pause()

    def rest(part: IO[bytes]) -> None:
        assert part.tell() == len(half)
        fetch_of("0.tar", 300)(part)

    child = FORK.Process(target=cache.open, args=("s3://bucket/0.tar", "1", 300, hang))
    child.start()
    assert ready.wait(60)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with cache.open("s3://bucket/0.tar", "1", 300, rest) as file:
        assert file.read() == bytes_of("0.tar", 300)
    assert names(cache) == ["0.tar"]


def test_the_least_recently_used_make_room(cache):
    for name in "abc":
        get(cache, name).close()
    age(cache, "a", "b", "c")
    get(cache, "a").close()
    get(cache, "d").close()
    assert names(cache) == ["a", "c", "d"]
    age(cache, "c", "d", "a")
    get(cache, "e", 650).close()
    assert names(cache) == ["a", "e"]
    assert used(cache) <= LIMIT
    with get(cache, "a") as file:
        age(cache, "a", "e")
        touch(file)
        get(cache, "f").close()
        assert names(cache) == ["a", "f"]


def test_an_open_file_stays_readable_and_tells_that_it_was_evicted(cache):
    with get(cache, "a") as file:
        assert not evicted(file)
        get(cache, "b", 900).close()
        assert names(cache) == ["b"]
        assert evicted(file)
        touch(file)
        assert file.read() == bytes_of("a", 300)


def test_a_part_under_way_counts_whole_and_is_never_evicted(cache, monkeypatch):
    monkeypatch.setattr(cache_module, "_PATIENCE", 0.0)
    other = ShardCache(cache.folder, LIMIT)

    def fetch(part: IO[bytes]) -> None:
        part.write(b"1")
        get(other, "b").close()
        age(cache, "a", "b")
        get(other, "c").close()
        assert names(cache) == ["a.600.part", "c"]
        with pytest.raises(UserError, match="cannot hold d of 5e-07 GB beside what is being"):
            get(other, "d", 500)
        # What could not have made room for it is still there.
        assert names(cache) == ["a.600.part", "c"]
        fetch_of("a", 600)(part)

    cache.open("s3://bucket/a", "1", 600, fetch).close()
    assert names(cache) == ["a", "c"]


def test_an_abandoned_part_makes_room_in_its_turn(cache):
    def cut(part: IO[bytes]) -> None:
        raise OSError("cut")

    with pytest.raises(OSError, match="cut"):
        cache.open("s3://bucket/a", "1", 600, cut)
    get(cache, "b").close()
    assert names(cache) == ["a.600.part", "b"]
    age(cache, "a", "b")
    get(cache, "c").close()
    assert names(cache) == ["b", "c"]


def test_too_big_a_file_is_refused_and_evicts_nothing(cache):
    get(cache, "a").close()
    with pytest.raises(UserError) as caught:
        get(cache, "b.tar", 1001)
    assert str(caught.value) == (
        f"data.cache_gb: 1e-06 GB in {cache.folder} cannot hold b.tar of 1.001e-06 GB; raise it"
    )
    assert names(cache) == ["a"]


def test_files_of_others_in_the_folder_are_left_alone(cache):
    others = [cache.folder / name for name in ("my-thesis.tar", "a-b.x.part", "notes")]
    for path in others:
        path.write_bytes(bytes(LIMIT))
    for name in "abcd":
        get(cache, name).close()
    assert all(path.stat().st_size == LIMIT for path in others)


def test_a_full_disk_is_one_line_that_names_the_folder(cache):
    def fetch(part: IO[bytes]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError) as caught:
        cache.open("s3://bucket/0.tar", "1", 300, fetch)
    assert str(caught.value) == f"data.cache: {cache.folder}: No space left on device"


def test_a_folder_in_memory_or_none_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("/dev/shm")
    for folder in (Path("/dev/shm"), Path("/dev/shm/a/b"), tmp_path / "link" / "a"):
        with pytest.raises(UserError, match=f"^data.cache: {folder}: is memory, not a disk"):
            ShardCache(folder, LIMIT)
        assert folder == Path("/dev/shm") or not folder.exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"^data.cache: {tmp_path}/file: File exists"):
        ShardCache(tmp_path / "file", LIMIT)


def walk(cache: ShardCache, log: Path, start: int, files: int) -> None:
    """Open all files, beginning somewhere, and note in `log` which were fetched here."""
    for number in range(start, start + files):
        name = f"{number % files}.tar"

        def fetch(part: IO[bytes], name: str = name) -> None:
            with open(log, "a") as lines:
                lines.write(f"{name}\n")
            fetch_of(name, 200)(part)

        with cache.open(f"s3://bucket/{name}", "1", 200, fetch) as file:
            assert file.read() == bytes_of(name, 200)
    assert used(cache) <= cache.limit


@pytest.mark.parametrize("limit", [10**4, 4 * 200])
def test_processes_that_share_a_folder_fetch_what_the_others_have_not(tmp_path, limit):
    cache, log, files = ShardCache(tmp_path / "cache", limit), tmp_path / "log", 12
    children = [
        FORK.Process(target=walk, args=(cache, log, start, files)) for start in (0, 0, 5, 9)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(600)
        assert child.exitcode == 0
    fetched = log.read_text().split()
    assert set(fetched) == {f"{number}.tar" for number in range(files)}
    if limit >= files * 200:
        assert len(fetched) == files
    assert not [name for name in names(cache) if name.endswith(".part")]


def fetch_at_leisure(cache: ShardCache, name: str, start: Barrier) -> None:
    """Fetch a file of 400 bytes, together with others."""

    def fetch(part: IO[bytes]) -> None:
        time.sleep(0.2)
        fetch_of(name, 400)(part)

    start.wait(600)
    with cache.open(f"s3://bucket/{name}", "1", 400, fetch) as file:
        assert file.read() == bytes_of(name, 400)


def test_a_crowded_cache_is_waited_for(cache, monkeypatch):
    """1000 bytes hold two of the four transfers at a time."""
    monkeypatch.setattr(cache_module, "_POLL", 0.02)
    start = FORK.Barrier(4)
    children = [FORK.Process(target=fetch_at_leisure, args=(cache, n, start)) for n in "abcd"]
    for child in children:
        child.start()
    for child in children:
        child.join(600)
        assert child.exitcode == 0
    assert len(names(cache)) == 2
    assert not [name for name in names(cache) if name.endswith(".part")]


def test_what_is_left_of_a_part_is_kept_while_it_waits(cache, monkeypatch):
    monkeypatch.setattr(cache_module, "_PATIENCE", 0.0)
    smaller = ShardCache(cache.folder, LIMIT - 100)

    def half(part: IO[bytes]) -> None:
        part.write(bytes_of("a", 200))
        raise OSError("cut")

    def fetch(part: IO[bytes]) -> None:
        with pytest.raises(UserError, match="cannot hold a of 4e-07 GB beside what is being"):
            get(smaller, "a", 400)
        fetch_of("b", 600)(part)

    with pytest.raises(OSError, match="cut"):
        cache.open("s3://bucket/a", "1", 400, half)
    cache.open("s3://bucket/b", "1", 600, fetch).close()
    assert names(cache) == ["a.400.part", "b"]
    (part,) = cache.folder.glob("*-a.400.part")
    assert part.stat().st_size == 200
