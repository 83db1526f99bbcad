"""Damaged samples and shards: what replaces them, and what stops with one line."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path

import pytest

from stack.data.batch import BatchLoader
from stack.data.index import fingerprint, parse_index
from stack.data.shard import Shard
from stack.data.storage import LocalFolder
from stack.data.stream import ShardStream
from stack.util import retry
from stack.util.errors import UserError
from tests.data.conftest import FIELDS
from tests.data.damage import flip, place_of, ruin

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

OPTIONS = {"global_batch": 16, "lanes": 8, "seed": 3, "window": 6}
DIRECT, DECODED = ("latent", "tokens"), ("latent", "text")
"""Fields that go straight into a batch, and fields that are decoded one by one."""


@pytest.fixture(autouse=True)
def _without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.0)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may damage."""
    return shutil.copytree(folder, tmp_path / "copy")


def loader(folders: Path | list[Path], fields=DIRECT, workers: int = 0, **changed) -> BatchLoader:
    stream = ShardStream(folders, **{**OPTIONS, "retries": 2, **changed})
    return BatchLoader(stream, ("key", *fields), workers=workers)


def read(batches: BatchLoader, steps: int) -> list[list[int]]:
    """Sample numbers of some batches, which key, latent and text agree on."""
    numbers = []
    for batch in islice(batches, steps):
        numbers.append([int(key) for key in batch["key"]])
        assert batch["latent"][:, 0, 0, 0].tolist() == numbers[-1]
        if "text" in batch:
            assert batch["text"] == [f"caption {number}" for number in numbers[-1]]
    return numbers


RUINED = [
    # Shards of 20, 7, 31 and 17 samples; the next shard of the last one is the first.
    ("000000", lambda n: 20 + n % 7 if n < 20 else n),
    ("000003", lambda n: (n - 58) % 20 if n >= 58 else n),
]


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (8, 0), (1, 2), (2, 1)])
@pytest.mark.parametrize("fields", [DIRECT, DECODED])
@pytest.mark.parametrize(("shard", "instead"), RUINED)
def test_a_ruined_shard_is_replaced_by_the_next(
    copy, folder, fields, world, workers, shard, instead
):
    ruin(copy, shard)
    whole = read(loader(folder), 8)
    ranks = [loader(copy, fields, workers, rank=rank, world_size=world) for rank in range(world)]
    parts = [read(rank, 8) for rank in ranks]
    expected = [[instead(number) for number in batch] for batch in whole]
    assert [list(chain(*step)) for step in zip(*parts, strict=True)] == expected
    bad = sum(rank.counts()["bad_samples"] for rank in ranks)
    assert bad == sum(n != instead(n) for n in chain(*whole)) > 16


def test_each_replaced_sample_is_named_with_its_reason_and_substitute(copy, caplog):
    ruin(copy, "000000")
    batches = loader(copy)
    with caplog.at_level(logging.WARNING):
        read(batches, 4)
    assert len(caplog.messages) == batches.counts()["bad_samples"]
    numbers = [int(message.split(": ")[1]) for message in caplog.messages]
    for number, message in zip(numbers, caplog.messages, strict=True):
        assert message == (
            f"{copy}/000000.tar: {number:06d}: latent.npy: crc32 does not match; "
            f"{20 + number % 7:06d} instead"
        )


def test_damage_all_over_is_one_line(copy):
    for shard in range(4):
        ruin(copy, f"{shard:06d}")
    with pytest.raises(UserError) as caught:
        read(loader(copy), 1)
    told = str(caught.value)
    assert told.startswith(f"{copy}/00000")
    assert "latent.npy: crc32 does not match, nor is any of the" in told
    assert told.endswith("run python -m data_prep verify on this folder")
    assert "\n" not in told


def test_the_sources_of_a_mixture_replace_their_own(make_folder):
    folders = [make_folder("a", [20, 20]), make_folder("b", [20, 20], first=40)]
    whole = read(loader(folders, weights=[1, 1]), 8)
    ruin(folders[0], "000001")
    seen = read(loader(folders, weights=[1, 1]), 8)
    assert seen == [[n - 20 if 20 <= n < 40 else n for n in batch] for batch in whole]
    ruin(folders[0], "000000")
    with pytest.raises(UserError, match=r"/a/00000.*nor is any of the 31 samples after it good"):
        read(loader(folders, weights=[1, 1]), 1)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened, as they are."""
    names, open_ = list[str](), LocalFolder.open

    def noting(self: LocalFolder, name: str, *rest):
        names.append(name)
        return open_(self, name, *rest)

    monkeypatch.setattr(LocalFolder, "open", noting)
    return names


def failing(monkeypatch: pytest.MonkeyPatch, call: str, times: int) -> None:
    """Let one of os's calls fail the first times a shard's sample is read with it."""
    real, left = getattr(os, call), [times]

    def flaky(descriptor: int, *rest):
        # Shard looks at headers of 512 bytes when it opens a tar.
        if left[0] and rest[0] != 512:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, *rest)

    monkeypatch.setattr(os, call, flaky)


CALLS = [("pread", DECODED), ("pread", DIRECT), ("preadv", DIRECT)]


@pytest.mark.parametrize(("call", "fields"), CALLS)
@pytest.mark.parametrize("times", [1, 2])
def test_a_read_that_fails_is_tried_again_with_the_shard_opened_anew(
    folder, monkeypatch, opened, caplog, call, fields, times
):
    whole = read(loader(folder), 4)
    opened.clear()
    failing(monkeypatch, call, times)
    with caplog.at_level(logging.WARNING):
        assert read(loader(folder, fields), 4) == whole
    assert len([name for name in opened if name.endswith(".tar")]) == 4 + times
    assert len(caplog.messages) == times
    assert caplog.messages[0].startswith(str(folder))
    assert caplog.messages[0].endswith(".tar: Input/output error; trying again in 0 s")


@pytest.mark.parametrize(("call", "fields"), CALLS)
@pytest.mark.parametrize("retries", [0, 2])
def test_a_read_that_fails_for_good_is_tried_as_often_as_it_says(
    folder, monkeypatch, opened, call, fields, retries
):
    batches = iter(loader(folder, fields, retries=retries))
    next(batches)
    opened.clear()
    failing(monkeypatch, call, 10**6)
    message = rf"^{folder}/00000\d.tar: failed {retries + 1} times: Input/output error$"
    with pytest.raises(UserError, match=message):
        next(batches)
    assert len([name for name in opened if name.endswith(".tar")]) == retries


def test_a_substitute_that_cannot_be_read_at_once_is_tried_again(copy, monkeypatch, caplog):
    ruin(copy, "000000")
    whole, real, left = read(loader(copy, DECODED), 4), Shard.read, [1]

    def flaky(self: Shard, row: int, fields: tuple[str, ...]):
        if left[0] and self.path.endswith("000001.tar"):
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return real(self, row, fields)

    monkeypatch.setattr(Shard, "read", flaky)
    with caplog.at_level(logging.WARNING):
        assert read(loader(copy, DECODED), 4) == whole
    again = f"{copy}/000001.tar: Input/output error; trying again in 0 s"
    assert again in caplog.messages


UNDER_WAY = [
    (lambda tar: os.truncate(tar, 2048), r"00000\d.tar: bytes: 2048 on disk, \d+ in its manifest"),
    (lambda tar: os.truncate(tar, 0), r"00000\d.tar: bytes: 0 on disk, \d+ in its manifest"),
    (lambda tar: (os.truncate(tar, 0), tar.unlink()), r"00000\d.tar: No such file or directory"),
]


@pytest.mark.parametrize("fields", [DIRECT, DECODED])
@pytest.mark.parametrize(("damage", "message"), UNDER_WAY)
def test_a_tar_that_breaks_while_it_is_read_is_one_line(copy, fields, damage, message):
    batches = iter(loader(copy, fields))
    next(batches)
    for tar in copy.glob("*.tar"):
        damage(tar)
    with pytest.raises(UserError, match=f"^{copy}/{message}") as caught:
        next(batches)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("row", [0, 19])
def test_a_garbled_header_is_told_when_the_shard_is_opened(copy, field, row):
    flip(copy / "000000.tar", place_of(copy, "000000", row, field) - 512 + 3)
    message = f"000000.tar: {row:06d}.{field}: not at byte .* the index is of another tar"
    with pytest.raises(UserError, match=f"^{copy}/{message}"):
        read(loader(copy), 4)


def edit_manifest(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest["shards"][0])
    entries = type(LocalFolder(folder).manifest().shards[0])
    manifest["fingerprint"] = fingerprint([entries(**shard) for shard in manifest["shards"]])
    path.write_text(json.dumps(manifest))


def test_an_index_older_than_its_tar_is_told(make_folder):
    """Pictures of other sizes, so that members of the same names lie elsewhere."""
    old = make_folder("old", [20], side=lambda number: 40)
    new = make_folder("new", [20])
    sizes = [(folder / "000000.tar").stat().st_size for folder in (old, new)]
    assert sizes[0] == sizes[1]
    shutil.copy(old / "000000.index.npy", new)
    (entry,) = LocalFolder(old).manifest().shards
    edit_manifest(new, lambda shard: shard.update(index_sha256=entry.index_sha256))
    parse_index((new / entry.index_name).read_bytes(), entry, "")
    with pytest.raises(UserError, match=r"new/000000.tar: 0000.*the index is of another tar"):
        read(loader(new), 1)
