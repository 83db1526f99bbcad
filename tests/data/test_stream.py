"""ShardStream: the same global batches for every layout of the work, exact places, damage seen."""

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from stack.data.index import fingerprint
from stack.data.stream import ShardStream
from stack.util.errors import UserError
from tests.data.damage import flip, place_of

OPTIONS = {"global_batch": 16, "lanes": 8, "seed": 3, "window": 6}


def rank_streams(folder: Path, world: int, **options) -> list[ShardStream]:
    settings = {**OPTIONS, **options}
    return [ShardStream(folder, **settings, rank=r, world_size=world) for r in range(world)]


def steps(streams: list[ShardStream]) -> Iterator[list[tuple[int, str]]]:
    """Global batches as (position, caption), the parts of all ranks together."""
    sources = [iter(stream) for stream in streams]
    size = OPTIONS["global_batch"] // len(streams)
    while True:
        batch = [one for source in sources for one in islice(source, size)]
        yield [(one["position"], one["txt"].decode()) for one in batch]


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[tuple[int, str]]]:
    """Global batches of three epochs, read by one process."""
    return list(islice(steps(rank_streams(folder, 1)), 12))


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_global_batches_are_those_of_one_process(folder, expected, world):
    assert list(islice(steps(rank_streams(folder, world)), 8)) == expected[:8]
    assert all([place for place, _ in batch] == list(range(16)) for batch in expected)


def test_an_epoch_repeats_nothing(expected):
    for epoch in (expected[:4], expected[4:8]):
        captions = [text for batch in epoch for _, text in batch]
        assert len(set(captions)) == len(captions) == 64
    assert expected[0] != expected[4]


@pytest.mark.parametrize("world", [1, 2, 8])
@pytest.mark.parametrize("done", [0, 1, 4, 7])
def test_a_place_saved_at_four_ranks_continues_at_another_world_size(folder, expected, world, done):
    before = rank_streams(folder, 4)
    assert list(islice(steps(before), done)) == expected[:done]
    states = [json.dumps(stream.state_dict()) for stream in before]
    assert len(set(states)) == 1
    assert len(states[0]) < 1024
    state = json.loads(states[0])
    assert set(state) == {"epoch", "step", "seed", "G", "C", "window", "fingerprint"}
    assert (state["epoch"], state["step"]) == divmod(done, 4)
    after = rank_streams(folder, world)
    for stream in after:
        stream.load_state_dict(state)
    assert list(islice(steps(after), 5)) == expected[done : done + 5]


def test_a_step_counts_with_its_last_sample(folder):
    stream = ShardStream(folder, **OPTIONS)
    for count, _ in enumerate(islice(stream, 40), 1):
        assert stream.state_dict()["step"] == count // 16


def test_a_far_place_is_the_same_as_a_near_one(folder):
    far = ShardStream(folder, **OPTIONS)
    far.load_state_dict({**far.state_dict(), "epoch": 10**6, "step": 3})
    batch = [sample["key"] for sample in islice(far, 16)]
    assert len(set(batch)) == 16
    assert far.state_dict()["epoch"] == 10**6 + 1


def test_a_pickled_stream_reads_the_same(folder, expected):
    stream = ShardStream(folder, **OPTIONS)
    next(iter(stream))
    assert list(islice(steps([pickle.loads(pickle.dumps(stream))]), 2)) == expected[:2]


@pytest.mark.parametrize("spec", ["{a,b}", "?", ["a", "b"]])
def test_patterns_name_several_folders(make_folder, tmp_path, spec):
    make_folder("a", [9])
    make_folder("b", [8], first=9)
    specs = [spec] if isinstance(spec, str) else spec
    stream = ShardStream([tmp_path / one for one in specs], **OPTIONS)
    epochs = [sample["txt"] for sample in islice(stream, 16 * 17)]
    assert set(epochs) == {f"caption {n}".encode() for n in range(17)}


def test_weights_share_the_lanes(make_folder):
    folders = [make_folder("a", [30]), make_folder("b", [40], first=30)]
    stream = ShardStream(folders, **OPTIONS, weights=[1, 3])
    numbers = np.array([json.loads(one["json"])["number"] for one in islice(stream, 160)])
    assert (numbers.reshape(10, 16) < 30).sum(axis=1).tolist() == [4] * 10


def test_samples_are_those_of_plain_webdataset(folder):
    import webdataset

    tars = sorted(map(str, folder.glob("*.tar")))
    plain = {
        sample["__key__"]: {k: v for k, v in sample.items() if not k.startswith("__")}
        for sample in webdataset.WebDataset(tars, shardshuffle=False)
    }
    assert len(plain) == 75
    for sample in islice(ShardStream(folder, **OPTIONS), 64):
        del sample["position"]
        assert plain[sample.pop("key")] == sample


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may damage."""
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("world", [1, 4])
def test_a_damaged_sample_is_replaced_by_its_neighbour(copy, folder, world, caplog):
    flip(copy / "000003.tar", place_of(copy, "000003", 16, "txt"))
    bad, instead = "caption 74", "caption 58"
    whole, damaged = rank_streams(folder, world), rank_streams(copy, world)
    with caplog.at_level(logging.WARNING):
        for good, seen in islice(zip(steps(whole), steps(damaged), strict=True), 8):
            assert seen == [(place, instead if text == bad else text) for place, text in good]
    assert 1 <= sum(stream.bad_samples for stream in damaged) == len(caplog.messages)
    for part in ("000003.tar", "000074", "txt: crc32", "000058 instead"):
        assert part in caplog.messages[0]


def cut(folder: Path) -> None:
    path = folder / "000002.tar"
    path.write_bytes(path.read_bytes()[:-10240])


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return apply


def swap_indexes(folder: Path) -> None:
    one, two = folder / "000000.index.npy", folder / "000001.index.npy"
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)


def garble_header(folder: Path) -> None:
    flip(folder / "000000.tar", place_of(folder, "000000", 0, "png") - 512 + 3)


DAMAGE = [
    (shutil.rmtree, "copy: no such folder of shards"),
    (lambda folder: (folder / "manifest.json").unlink(), "copy/manifest.json: missing"),
    (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: not JSON"),
    (
        lambda folder: (folder / "manifest.json").write_text("[]"),
        r"manifest.json: Input should be a valid dictionary .* \(\[\]\)",
    ),
    (edit(lambda m: m.pop("samples")), "manifest.json: samples: Field required"),
    (edit(lambda m: m.update(samples="x")), "manifest.json: samples: Input should be a valid int"),
    (edit(lambda m: m.update(samples=74)), "manifest.json: samples: 74, but its shards add up"),
    (edit(lambda m: m["shards"][1].update(bytes=1)), "manifest.json: fingerprint: does not match"),
    (
        edit(lambda m: m.update(shards=[], samples=0, fingerprint=fingerprint(()))),
        "copy: samples: the dataset is empty",
    ),
    (lambda folder: (folder / "000001.tar").unlink(), "000001.tar: missing, but listed"),
    (lambda folder: (folder / "000001.index.npy").unlink(), "000001.index.npy: missing"),
    (cut, "000002.tar: bytes: .* on disk, .* the tar was cut short or replaced"),
    (swap_indexes, "index.npy: index_sha256: not the index that manifest.json lists"),
    (garble_header, "000000.tar: 000000.png: not at byte .* the index is of another tar"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_folder_that_does_not_fit_together_is_refused(copy, damage, message):
    damage(copy)
    with pytest.raises(UserError, match=message) as caught:
        list(islice(ShardStream(copy, **OPTIONS), 64))
    assert "\n" not in str(caught.value)


BAD_SETTINGS = [
    ({"world_size": 3, "rank": 0}, "world_size: 3 does not divide lanes 8; legal: 1, 2, 4, 8"),
    ({"lanes": 3}, "lanes: 3 does not divide global_batch 16; legal: 1, 2, 4, 8, 16"),
    ({"weights": [1, 2]}, "^data.weights: 2 of them for 1 folders"),
    ({"weights": [0]}, "^data.weights: .*/plain: must be positive and finite"),
    ({"weights": [float("nan")]}, "^data.weights: .*/plain: must be positive and finite"),
    ({"global_batch": 128}, "^data.global_batch: .*/plain has 75 samples, fewer than the 128"),
]


@pytest.mark.parametrize(("change", "message"), BAD_SETTINGS)
def test_bad_settings(folder, change, message):
    with pytest.raises(UserError, match=message):
        ShardStream(folder, **{**OPTIONS, **change})


def test_a_folder_named_twice_is_refused(folder):
    with pytest.raises(UserError, match="plain: named twice"):
        ShardStream([folder, folder], **OPTIONS)
    with pytest.raises(UserError, match=r"nothing-\?: no folder matches"):
        ShardStream(folder / "nothing-?", **OPTIONS)


@pytest.mark.parametrize("make", [Path.symlink_to, lambda new, old: shutil.copytree(old, new)])
def test_one_folder_under_two_names_is_refused_within_a_source(folder, tmp_path, make):
    twin = tmp_path / "twin"
    make(twin, folder)
    with pytest.raises(UserError, match=f"^{twin}: same data as {folder}; name it once"):
        ShardStream([folder, twin], **OPTIONS)
    weighted = ShardStream([folder, twin], **OPTIONS, weights=[1, 3])
    assert len(list(islice(weighted, 16))) == 16


@pytest.mark.parametrize("spec", ["", "$EMPTY", "{a,}"])
def test_an_empty_name_is_not_the_working_directory(folder, monkeypatch, spec):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(UserError, match=f"^data.folders: {re.escape(repr(spec))}: an empty name"):
        ShardStream([spec], **OPTIONS)


@pytest.mark.parametrize("name", ["seed", "G", "C", "window", "fingerprint"])
def test_a_place_in_another_stream_is_refused_by_name(folder, name):
    stream = ShardStream(folder, **OPTIONS)
    with pytest.raises(UserError, match=f"plain: {name}: the saved place is of another stream"):
        stream.load_state_dict({**stream.state_dict(), name: "other"})


def test_another_dataset_has_another_fingerprint(make_folder, folder):
    prints = {
        ShardStream(folders, **OPTIONS, weights=weights).state_dict()["fingerprint"]
        for folders, weights in [
            ([folder], None),
            ([folder], [1]),
            ([make_folder("same size", (20, 7, 31, 17), first=1)], None),
            ([folder, make_folder("more", (5,), first=80)], None),
        ]
    }
    assert len(prints) == 4
