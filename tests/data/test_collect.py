"""Collectors: what is read straight into a batch is what decoding each sample would give."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from stack.data import batch as batch_module
from stack.data.batch import BatchLoader
from stack.data.collect import Values
from stack.data.decode import encode_npy
from stack.data.index import Manifest, ShardEntry, fingerprint, index_bytes, index_shard
from stack.data.shard import Shard
from stack.data.stream import ShardStream
from stack.util.errors import UserError
from tests.data.damage import flip, place_of

SAMPLES, BATCH = 24, 8
Members = Sequence[tuple[str, bytes]]


def latent(number: int, shape: tuple[int, ...] = (4, 2, 3), kind: type = np.float16) -> bytes:
    return encode_npy((np.arange(np.prod(shape)) + number).reshape(shape).astype(kind))


def tokens(number: int) -> bytes:
    return encode_npy(np.arange(number, number + 77, dtype=np.uint16))


def foreign_folder(path: Path, members: Callable[[int], Members], shards: int = 2) -> Path:
    """A folder of tars written by tarfile, with members of any order and size."""
    path.mkdir(parents=True)
    entries, each = [], SAMPLES // shards
    for shard in range(shards):
        tar_path = path / f"{shard:06d}.tar"
        with tarfile.open(tar_path, "w") as tar:
            for number in range(shard * each, (shard + 1) * each):
                for field, data in members(number):
                    info = tarfile.TarInfo(f"{number:06d}.{field}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        index = index_bytes(index_shard(tar_path))
        (path / f"{shard:06d}.index.npy").write_bytes(index)
        data = tar_path.read_bytes()
        sums = {"sha256": sha256(data).hexdigest(), "index_sha256": sha256(index).hexdigest()}
        entries.append(ShardEntry(name=tar_path.name, samples=each, bytes=len(data), **sums))
    fields = {field: SAMPLES for number in range(SAMPLES) for field, _ in members(number)}
    manifest = Manifest(
        samples=SAMPLES, fields=fields, fingerprint=fingerprint(entries), shards=tuple(entries)
    )
    manifest.write(path)
    return path


def both(number: int) -> list[tuple[str, bytes]]:
    return [("latent.npy", latent(number)), ("tokens.npy", tokens(number))]


def gap(size: Callable[[int], int]) -> Callable[[int], Members]:
    """Something of a size that depends on the sample between latent and tokens."""
    return lambda n: [both(n)[0], ("cls", b"7" * size(n)), both(n)[1]]


def the_first(numbers: list[int]) -> int:
    return 1


def the_first_and_those_unlike_it(numbers: list[int]) -> int:
    return 1 + sum((number - numbers[0]) % 2 for number in numbers)


LAYOUTS = {
    # Members of a sample, and how many samples of a batch are decoded one by one.
    "side by side": (both, the_first),
    "other order": (lambda n: both(n)[::-1], the_first),
    "more around": (lambda n: [("cls", b"7"), *both(n), ("txt", b"a" * n)], the_first),
    "a gap": (gap(lambda n: 700), the_first),
    "two gaps": (gap(lambda n: 700 + 512 * (n % 2)), the_first_and_those_unlike_it),
    "too wide a gap": (gap(lambda n: 20000), len),
    "two orders": (lambda n: both(n)[:: 1 - 2 * (n % 2)], the_first_and_those_unlike_it),
    "no dimension": (lambda n: [("latent.npy", latent(n, (), int)), both(n)[1]], the_first),
}


def batches(folder: Path, fields: Sequence[str]) -> Iterator[dict]:
    stream = ShardStream(folder, global_batch=BATCH, lanes=BATCH, seed=3, window=4)
    return iter(BatchLoader(stream, ("key", *fields)))


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Sequence[str]], list[dict]]:
    """An epoch whose samples are all decoded on their own."""

    def read(folder: Path, fields: Sequence[str]) -> list[dict]:
        with monkeypatch.context() as patch:
            patch.setattr(batch_module, "collector", Values)
            return list(islice(batches(folder, fields), SAMPLES // BATCH))

    return read


def assert_same(some: list[dict], others: list[dict], fields: Sequence[str]) -> None:
    for one, other in zip(some, others, strict=True):
        assert one["key"] == other["key"]
        for field in fields:
            assert one[field].dtype == other[field].dtype
            assert torch.equal(one[field], other[field])


FIELDS = [("latent", "tokens"), ("tokens", "latent"), ("latent",), ("tokens",)]


@pytest.mark.parametrize("fields", FIELDS, ids="+".join)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_tensors(tmp_path, one_by_one, layout, fields):
    folder = foreign_folder(tmp_path / "x", LAYOUTS[layout][0])
    found = list(islice(batches(folder, fields), SAMPLES // BATCH))
    assert_same(found, one_by_one(folder, fields), fields)
    for batch in found:
        numbers = torch.tensor([int(key) for key in batch["key"]])
        for field in fields:
            assert torch.equal(batch[field].reshape(BATCH, -1)[:, 0].long(), numbers)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_that_lie_alike_are_read_straight_into_the_batch(tmp_path, monkeypatch, layout):
    members, decoded = LAYOUTS[layout]
    folder, calls, real = foreign_folder(tmp_path / "x", members), [], Shard.read
    monkeypatch.setattr(Shard, "read", lambda *args: calls.append(1) or real(*args))
    batch = next(batches(folder, ("latent", "tokens")))
    assert len(calls) == decoded([int(key) for key in batch["key"]])


def test_shards_of_different_layouts_meet_in_one_batch(tmp_path, one_by_one):
    folder = foreign_folder(
        tmp_path / "x", lambda n: both(n) if n < SAMPLES // 2 else gap(lambda n: 20000)(n)
    )
    fields = ("latent", "tokens")
    found = list(islice(batches(folder, fields), SAMPLES // BATCH))
    assert_same(found, one_by_one(folder, fields), fields)


@pytest.mark.parametrize("place", range(BATCH))
@pytest.mark.parametrize(
    ("field", "offset"), [("latent.npy", 130), ("latent.npy", 20), ("tokens.npy", 200)]
)
@pytest.mark.parametrize("layout", ["side by side", "a gap", "too wide a gap"])
def test_a_damaged_sample_anywhere_in_a_batch(tmp_path, one_by_one, layout, field, offset, place):
    """In the array or its npy header; the first sample of a batch is the one that is learnt."""
    folder, fields = foreign_folder(tmp_path / "x", LAYOUTS[layout][0]), ("latent", "tokens")
    whole = next(batches(folder, fields))
    bad = int(whole["key"][place])
    shard, row = divmod(bad, SAMPLES // 2)
    path = folder / f"{shard:06d}.tar"
    flip(path, place_of(folder, f"{shard:06d}", row, field) + offset)
    found = next(batches(folder, fields))
    instead = shard * (SAMPLES // 2) + (row + 1) % (SAMPLES // 2)
    for field in fields:
        numbers = whole[field].flatten(1)[:, 0].long().tolist()
        assert numbers[place] == bad
        numbers[place] = instead
        assert found[field].flatten(1)[:, 0].long().tolist() == numbers
    assert_same([found], one_by_one(folder, fields)[:1], fields)


def test_bytes_between_the_arrays_are_not_damage(tmp_path):
    folder = foreign_folder(tmp_path / "x", gap(lambda n: 700))
    whole = next(batches(folder, ("latent", "tokens")))
    for row in range(1, 11):
        flip(folder / "000000.tar", place_of(folder, "000000", row, "cls"))
    assert_same([next(batches(folder, ("latent", "tokens")))], [whole], ("latent", "tokens"))


OTHERS = [
    ({"shape": (4, 3, 2)}, "(4, 3, 2) float16"),
    ({"shape": (1, 2, 3)}, "(1, 2, 3) float16"),
    ({"shape": (24,)}, "(24,) float16"),
    ({"kind": np.float32}, "(4, 2, 3) float32"),
    ({"kind": np.uint16}, "(4, 2, 3) uint16"),
]


@pytest.mark.parametrize("fields", [("latent",), ("latent", "tokens"), ("latent", "cls")])
@pytest.mark.parametrize(("other", "said"), OTHERS)
@pytest.mark.parametrize("place", [0, 5])
def test_arrays_that_differ_are_one_line(tmp_path, fields, other, said, place):
    """One sample of another kind, at a place of the first batch."""
    keys = next(batches(foreign_folder(tmp_path / "plain", gap(lambda n: 1)), fields))["key"]

    def members(number: int) -> Members:
        changed = other if number == int(keys[place]) else {}
        return [("latent.npy", latent(number, **changed)), *gap(lambda n: 1)(number)[1:]]

    with pytest.raises(UserError) as caught:
        next(batches(foreign_folder(tmp_path / "x", members), fields))
    start, _, seen = str(caught.value).partition("type: ")
    assert start == "latent: samples of one batch differ in shape or "
    # The first sample and the odd one, or the odd one and the next or the last.
    odd, usual = sorted(seen.split("; "), key=lambda part: not part.startswith(keys[place]))
    assert odd == f"{keys[place]} has {said}"
    assert usual[:6] in keys
    assert usual[6:] == " has (4, 2, 3) float16"
